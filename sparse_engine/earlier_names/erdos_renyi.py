"""Now sparse_engine.sparsity.erdos_renyi."""

from sparse_engine.errors import warn_renamed
from sparse_engine.sparsity.erdos_renyi import *  # noqa: F403

warn_renamed(__name__, "sparse_engine.sparsity.erdos_renyi")
