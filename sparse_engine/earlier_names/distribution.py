"""Now sparse_engine.sparsity.distribution."""

from sparse_engine.sparsity.distribution import *  # noqa: F403
