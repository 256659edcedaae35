"""Now sparse_engine.evaluation.plots."""

from sparse_engine.errors import warn_renamed
from sparse_engine.evaluation.plots import *  # noqa: F403
from sparse_engine.figures.blocks import draw_blocks  # noqa: F401

warn_renamed(__name__, "sparse_engine.evaluation.plots")
