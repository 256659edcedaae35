"""Networks as lists of stages, which one after another do what their forward does."""

import sys
from itertools import groupby

from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.models.mlp import MLP
from sparse_engine.models.resnet import ResNet
from sparse_engine.models.vgg import STAGES as VGG_STAGES
from sparse_engine.models.vgg import VGG16
from sparse_engine.models.wide_resnet import WideResNet


class GlobalAverage(nn.Module):
    """The mean over all pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C]."""
        return x.mean((2, 3))


def split_stages(model: nn.Module, name: str) -> list[nn.Sequential]:
    """Return a model's stages and, last, its head; the stem belongs to the first stage.

    Args:
        model: whose modules the stages share.
        name: of the model, for the error.

    Raises:
        InputError: a model that is none of ours, nor a ResNet of torchvision.
    """
    if isinstance(model, WideResNet):
        (first, *rest), head = _equally_wide(model.blocks), (model.norm, nn.ReLU())
        stages = [[model.stem, *first], *rest, [*head, GlobalAverage(), model.classifier]]
    elif isinstance(model, ResNet):
        first, *rest = _equally_wide(model.blocks)
        head = [GlobalAverage(), model.dropout, model.classifier]
        stages = [[model.stem, model.norm, nn.ReLU(), *first], *rest, head]
    elif isinstance(model, VGG16):
        head = [GlobalAverage(), model.dropout, model.classifier]
        stages = [*_vgg_stages(model.features), head]
    elif isinstance(model, MLP):
        hidden = [[m, nn.ReLU(), model.dropout] for m in (model.hidden1, model.hidden2)]
        stages = [[nn.Flatten(), *hidden[0]], hidden[1], [model.classifier]]
    else:
        stages = _torchvision_stages(model, name)
    return [nn.Sequential(*modules) for modules in stages]


def _equally_wide(blocks: nn.Sequential) -> list[list[nn.Module]]:
    return [list(stage) for _, stage in groupby(blocks, lambda block: block.conv1.out_channels)]


def _vgg_stages(features: nn.Sequential) -> list[list[nn.Module]]:
    modules, stages = list(features), []
    for _, count in VGG_STAGES:
        # On small images the last stages end without a pool.
        count += len(modules) > count and isinstance(modules[count], nn.MaxPool2d)
        stages.append(modules[:count])
        modules = modules[count:]
    return stages


def _torchvision_stages(model: nn.Module, name: str) -> list[list[nn.Module]]:
    # What is of torchvision has imported it; where it is not installed, no model is.
    resnets = sys.modules.get("torchvision.models.resnet")
    if resnets is None or not isinstance(model, resnets.ResNet):
        raise InputError(
            f"{name} has no stages to share; choose wrnD-W, a resnet, vgg16, mlp, "
            "or for images of three channels torchvision/resnet50"
        )
    stem = [model.conv1, model.bn1, model.relu, model.maxpool]
    head = [model.avgpool, nn.Flatten(), model.fc]
    layers = [[layer] for layer in (model.layer2, model.layer3, model.layer4)]
    return [[*stem, model.layer1], *layers, head]
