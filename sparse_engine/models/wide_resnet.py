"""Wide residual networks (Zagoruyko & Komodakis 2016)."""

import torch
from torch import Tensor, nn

from sparse_engine.models.resnet import convolution


class PreActivationBlock(nn.Module):
    """Norm, ReLU, convolution, twice, added to the input (section 2, table 1).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(out_channels, out_channels, 3)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = None if same_shape else convolution(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        activated = torch.relu(self.norm1(x))
        residual = torch.relu(self.norm2(self.conv1(activated)))
        residual = self.conv2(self.dropout(residual))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of (depth - 4) / 6 blocks, 16, 32 and 64 times `width` wide.

    `dropout` is the probability of dropping an activation between a block's two convolutions
    (section 2.4). `depth` must be 6k + 4.
    """

    def __init__(
        self, depth: int, width: int, *, classes: int, channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.stem = convolution(channels, 16, 3)
        blocks = []
        in_channels = 16
        for out_channels, first_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for index in range((depth - 4) // 6):
                stride = first_stride if index == 0 else 1
                blocks.append(PreActivationBlock(in_channels, out_channels, stride, dropout))
                in_channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(in_channels)
        self.classifier = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to logits [N, classes]."""
        return self.classifier(self.features(x).mean((2, 3)))

    def features(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to what is averaged over pixels."""
        return torch.relu(self.norm(self.blocks(self.stem(x))))
