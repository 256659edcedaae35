"""Now sparse_engine.training.tuning."""

from sparse_engine.training.tuning import *  # noqa: F403
