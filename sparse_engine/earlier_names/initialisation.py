"""Now sparse_engine.layers.initialisation."""

from sparse_engine.errors import warn_renamed
from sparse_engine.layers.initialisation import *  # noqa: F403

warn_renamed(__name__, "sparse_engine.layers.initialisation")
