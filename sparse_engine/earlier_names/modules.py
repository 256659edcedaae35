"""Now sparse_engine.layers.modules."""

from sparse_engine.errors import warn_renamed
from sparse_engine.layers.modules import *  # noqa: F403

warn_renamed(__name__, "sparse_engine.layers.modules")
