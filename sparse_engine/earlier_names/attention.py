"""Now sparse_engine.layers.attention."""

from sparse_engine.layers.attention import *  # noqa: F403
