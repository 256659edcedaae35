"""Now sparse_engine.evaluation.plots."""

from sparse_engine.evaluation.plots import *  # noqa: F403
