"""Whole networks with batch norm, ReLU and residual inside the passes of their convolutions.

`fuse` gives known residual blocks and networks forwards made of the functions of layers/fused.py.
Where no sparse layer of a block runs on the Triton kernels, and its norms not on the native ones of
a CPU, the block runs as it did before.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparse_engine.layers.fused import (
    FusedResidualBlock,
    PendingNorm,
    compute_dtype,
    convolve,
    normalised,
    runs_fused,
)
from sparse_engine.models.resnet import BasicBlock, Bottleneck, ResNet
from sparse_engine.models.vgg import VGG16, ConvolutionNormReLU
from sparse_engine.models.wide_resnet import PreActivationBlock, WideResNet


class FusedPreActivationBlock(PreActivationBlock):
    """PreActivationBlock in the passes of its convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        if not runs_fused(self.children(), x):
            return super().forward(x)
        first = normalised(self.norm1, x)
        second = normalised(self.norm2, convolve(self.conv1, first))
        skip = first.x
        if self.shortcut is not None:
            skip = convolve(self.shortcut, first, statistics=False)
        if self.dropout.training and self.dropout.p:
            second = PendingNorm(self.dropout(second.activated()))
        return convolve(self.conv2, second, skip)


class FusedBasicBlock(FusedResidualBlock, BasicBlock):
    """BasicBlock in the passes of its convolutions."""


class FusedBottleneck(FusedResidualBlock, Bottleneck):
    """Bottleneck in the passes of its convolutions."""


class FusedWideResNet(WideResNet):
    """WideResNet whose last norm and ReLU are one pass."""

    def features(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to what is averaged over pixels."""
        x = self.blocks(self.stem(x))
        if not runs_fused((self.norm, self.blocks[-1].conv2), x):
            return torch.relu(self.norm(x))
        return normalised(self.norm, x).activated()


class FusedResNet(ResNet):
    """ResNet whose first norm and ReLU are one pass."""

    def stem_features(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to what the first block reads."""
        x = x.to(compute_dtype(x))
        if not runs_fused((self.stem, self.norm, self.blocks[0].conv1), x):
            return super().stem_features(x)
        return normalised(self.norm, convolve(self.stem, PendingNorm(x))).activated()


class FusedVGG16(VGG16):
    """VGG16 whose activations are stored once, or before a pool twice."""

    def pixel_features(self, x: Tensor) -> Tensor:
        """Map images [N, channels, height, width] to what is averaged over pixels."""
        x = x.to(compute_dtype(x))
        if not runs_fused(self.features, x):
            return super().pixel_features(x)
        pending = PendingNorm(x)
        for layer in self.features:
            if isinstance(layer, ConvolutionNormReLU):
                pending = normalised(layer.norm, convolve(layer.conv, pending))
            else:
                pending = PendingNorm(layer(pending.activated()))
        return pending.activated()


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    BasicBlock: FusedBasicBlock,
    Bottleneck: FusedBottleneck,
    PreActivationBlock: FusedPreActivationBlock,
    ResNet: FusedResNet,
    VGG16: FusedVGG16,
    WideResNet: FusedWideResNet,
}


def fuse(model: nn.Module) -> nn.Module:
    """Let the blocks and networks that are known run in as few passes as they can, in place.

    Parameters, buffers, state-dict keys and numbers (but for rounding) stay as they are; copies,
    pickles and optimizers of the model work as before. Call it after `sparsify`, and after or
    before `to_rows`. Known are this package's convolutional networks and torchvision's ResNets.

    A block runs as before where none of its sparse layers runs on the Triton kernels, while one of
    its modules has a hook, and with norms other than nn.BatchNorm2d. A layer without kernels, or
    one that collects scores for gradient growth, runs between fused ones as a module. Gradients of
    gradients need the network as it was.

    On a CPU that has native kernels, norms with ReLU and residual run in passes of their own, of
    images in channels_last or rows that are large enough; all layers run as modules, and there are
    gradients of gradients.

    Returns:
        The model.
    """
    known = _known()
    for module in model.modules():
        if type(module) in known:
            module.__class__ = known[type(module)]
    return model


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Let a model run as before `fuse` for a while."""
    usual = {fused: kind for kind, fused in _known().items()}
    kinds = {module: type(module) for module in model.modules() if type(module) in usual}
    for module, kind in kinds.items():
        module.__class__ = usual[kind]
    try:
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind


def _known() -> dict[type[nn.Module], type[nn.Module]]:
    if "torchvision.models.resnet" not in sys.modules:
        return FUSED
    from sparse_engine.models.fused_torchvision import FUSED_TORCHVISION

    return FUSED | FUSED_TORCHVISION
