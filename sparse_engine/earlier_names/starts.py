"""Now sparse_engine.sparsity.saliency."""

from sparse_engine.errors import warn_renamed
from sparse_engine.sparsity.saliency import *  # noqa: F403

warn_renamed(__name__, "sparse_engine.sparsity.saliency")
