"""Now sparse_engine.evaluation.plots.

What draws a layer's blocks is in sparse_engine.figures.blocks.
"""

from sparse_engine.evaluation.plots import *  # noqa: F403
from sparse_engine.figures.blocks import draw_blocks  # noqa: F401
