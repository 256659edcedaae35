"""The one model that a configuration names."""

from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.models.build import build_model


def plain_model(config: Config, info: DatasetInfo) -> nn.Module:
    """Return the model of a resolved configuration, with random weights, all of them present."""
    sizes = {"channels": info.channels, "height": info.height, "width": info.width}
    return build_model(config.model, classes=info.classes, dropout=config.dropout, **sizes)
