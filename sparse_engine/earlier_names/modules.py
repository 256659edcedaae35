"""Now sparse_engine.layers.modules."""

from sparse_engine.layers.modules import *  # noqa: F403
