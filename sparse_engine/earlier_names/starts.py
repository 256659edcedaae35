"""Now sparse_engine.sparsity.saliency."""

from sparse_engine.sparsity.saliency import *  # noqa: F403
