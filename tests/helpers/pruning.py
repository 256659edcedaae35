"""Pruning as a run's settings say."""

from sparse_engine.sparsity.pruning import strongest_layouts
from sparse_engine.training.network import wanted


def strongest(model, sparsity, config):
    """Return the layouts that the layers of a model would have after pruning."""
    return strongest_layouts(model, wanted(config, sparsity), config.prune_scope)
