"""Now sparse_engine.layers.initialisation."""

from sparse_engine.layers.initialisation import *  # noqa: F403
