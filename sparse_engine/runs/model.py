"""The network of a run before any weight is dropped, and what it is trained on.

Most methods train a plain model, which maps images [N, C, H, W] to logits [N, K]. The record of a
method whose network is another names one of BUILDERS. Its network maps images to [N, K] as well
when it is in eval mode: several predictions are given as the logarithm of their mean probability,
whose softmax that is. In training it may offer

    training_pair(x, y) -> logits [M, N, K] and labels [M, N], or any leading dimensions,

where x are images [N, C, H, W] and y labels [N]; the phase's loss compares the two. A network of
several members offers `member_models()`, each of them as a model with logits of its own.
"""

import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.layers.candidates import skip_layers
from sparse_engine.methods.registry import METHODS
from sparse_engine.models.batch_ensemble import BatchEnsemble
from sparse_engine.models.build import build_model
from sparse_engine.models.catalog import parse_name
from sparse_engine.models.mc_dropout import MonteCarloDropout
from sparse_engine.models.mimo import MIMO
from sparse_engine.models.stages import split_stages
from sparse_engine.models.treenet import TreeNet


def is_plain(config: Config) -> bool:
    """Return whether a method's network is the model that its configuration names."""
    return METHODS[config.method].network is None


def dense_model(config: Config, info: DatasetInfo) -> nn.Module:
    """Return the network of a resolved configuration, with random weights, all of them present.

    Raises:
        InputError: a model that the method cannot make its network of.
    """
    network = METHODS[config.method].network
    return BUILDERS[network](config, info) if network else plain_model(config, info)


def trained_model(config: Config, info: DatasetInfo) -> nn.Module:
    """Return the network as dense_model, in the memory order that a run trains in."""
    return dense_model(config, info).to(memory_format=torch.channels_last)


def plain_model(config: Config, info: DatasetInfo) -> nn.Module:
    """Return the one model that a resolved configuration names, as dense_model."""
    sizes = {"channels": info.channels, "height": info.height, "width": info.width}
    model = build_model(config.model, classes=info.classes, dropout=config.dropout, **sizes)
    skip_layers(model, config.skip or ())
    return model


def _batch_ensemble(config: Config, info: DatasetInfo) -> nn.Module:
    return BatchEnsemble(plain_model(config, info), config.members or 1)


def _mc_dropout(config: Config, info: DatasetInfo) -> nn.Module:
    return MonteCarloDropout(plain_model(config, info), config.passes or 1, config.seed)


def _mimo(config: Config, info: DatasetInfo) -> nn.Module:
    members = config.members or 1
    channels = members * info.channels
    from_torchvision = parse_name(config.model).family == "torchvision"
    network = build_model(
        config.model,
        classes=members * info.classes,
        channels=3 if from_torchvision else channels,
        height=info.height,
        width=info.width,
        dropout=config.dropout,
    )
    if from_torchvision:
        _set_input_channels(network, channels)
    return MIMO(network, members, config.batch_repetition or 1, config.input_repetition or 0.0)


def _treenet(config: Config, info: DatasetInfo) -> nn.Module:
    networks = [
        split_stages(plain_model(config, info), config.model) for _ in range(config.members or 1)
    ]
    shared = config.shared_stages
    trunk = nn.Sequential(*networks[0][:shared])
    return TreeNet(trunk, [nn.Sequential(*network[shared:]) for network in networks])


def _set_input_channels(network: nn.Module, channels: int) -> None:
    """Give a network, whose first convolution reads the image, another number of channels."""
    name, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    sizes = (old.kernel_size, old.stride, old.padding, old.dilation)
    new = nn.Conv2d(channels, old.out_channels, *sizes, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, new)


BUILDERS = {
    "batch-ensemble": _batch_ensemble,
    "mc-dropout": _mc_dropout,
    "mimo": _mimo,
    "treenet": _treenet,
}
