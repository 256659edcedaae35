"""Now sparse_engine.evaluation.metrics."""

from sparse_engine.evaluation.metrics import *  # noqa: F403
