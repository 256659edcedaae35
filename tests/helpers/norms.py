"""Batch norms as training leaves them: no statistic or factor is 0 or 1 any more."""

from torch import nn


def lively(model: nn.Module) -> nn.Module:
    """Give a model's batch norms statistics and factors of their own, in place."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias, std=0.1)
    return model
