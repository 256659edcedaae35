"""Now sparse_engine.evaluation.plots."""

from sparse_engine.errors import warn_renamed
from sparse_engine.evaluation.plots import *  # noqa: F403

warn_renamed(__name__, "sparse_engine.evaluation.plots")
