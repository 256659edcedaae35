"""The forwards that `fuse` gives to torchvision's ResNets; imported where torchvision is."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from sparse_engine.layers.fused import (
    FusedResidualBlock,
    PendingNorm,
    compute_dtype,
    convolve,
    normalised,
    runs_fused,
)


class FusedTorchvisionBasicBlock(FusedResidualBlock, BasicBlock):
    """BasicBlock in the passes of its convolutions."""


class FusedTorchvisionBottleneck(FusedResidualBlock, Bottleneck):
    """Bottleneck in the passes of its convolutions."""


class FusedTorchvisionResNet(ResNet):
    """ResNet whose first norm and ReLU are one pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        x = x.to(compute_dtype(x))
        if not runs_fused((self.conv1, self.bn1, self.relu, self.layer1[0].conv1), x):
            return super().forward(x)
        x = normalised(self.bn1, convolve(self.conv1, PendingNorm(x))).activated()
        x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


FUSED_TORCHVISION: dict[type[nn.Module], type[nn.Module]] = {
    BasicBlock: FusedTorchvisionBasicBlock,
    Bottleneck: FusedTorchvisionBottleneck,
    ResNet: FusedTorchvisionResNet,
}
