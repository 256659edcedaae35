"""Now sparse_engine.sparsity.erdos_renyi."""

from sparse_engine.sparsity.erdos_renyi import *  # noqa: F403
