"""Now sparse_engine.layers.report."""

from sparse_engine.layers.report import *  # noqa: F403
