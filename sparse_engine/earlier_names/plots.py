"""Now sparse_engine.evaluation.plots, and sparse_engine.figures.blocks."""

from sparse_engine.evaluation.plots import *  # noqa: F403
from sparse_engine.figures.blocks import draw_blocks  # noqa: F401
