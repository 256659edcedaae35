"""The network of a method before any weight is dropped, and what it is trained on.

Most methods train a plain model, which maps images [N, C, H, W] to logits [N, K]. A method whose
network is another has a function in BUILDERS. Its network maps images to [N, K] as well when it
is in eval mode: several predictions are given as the logarithm of their mean probability, whose
softmax that is. In training it may offer

    training_pair(x, y) -> logits [M, N, K] and labels [M, N], or any leading dimensions,

where x are images [N, C, H, W] and y labels [N]; the phase's loss compares the two. A network of
several members offers `member_models()`, each of them as a model with logits of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.models.batch_ensemble import batch_ensemble
from sparse_engine.models.mc_dropout import mc_dropout
from sparse_engine.models.mimo import mimo
from sparse_engine.models.plain import plain_model
from sparse_engine.models.treenet import treenet

Builder = Callable[[Config, DatasetInfo], nn.Module]
BUILDERS: dict[str, Builder] = {
    "mc-dropout": mc_dropout,
    "batch-ensemble": batch_ensemble,
    "mimo": mimo,
    "treenet": treenet,
}


def dense_model(config: Config, info: DatasetInfo) -> nn.Module:
    """Return the network of a resolved configuration's method, all weights present."""
    return BUILDERS.get(config.method, plain_model)(config, info)
