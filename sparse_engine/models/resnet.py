"""Residual networks for small images (He et al. 2016, "Deep residual learning")."""

import torch
from torch import Tensor, nn


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Conv2d:
    """Return an odd-sized convolution without bias that keeps the image size at stride 1.

    Weights are He-normal over the fan-out, which keeps the variance of gradients from layer to
    layer (He et al. 2015, "Delving deep into rectifiers", section 2.2).
    """
    layer = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class Shortcut(nn.Sequential):
    """A projection: 1x1 convolution and norm (section 3.3, option B)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
        )


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity, or a projection where a block changes the shape."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return Shortcut(in_channels, out_channels, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (figure 5, left)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, 3, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, width, H / stride, W / stride]."""
        residual = torch.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return torch.relu(residual + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions (figure 5, right); the 3x3 one has the stride."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = convolution(in_channels, width, 1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, out_channels, 1)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, 4 * width, H / stride, W / stride]."""
        residual = torch.relu(self.norm1(self.conv1(x)))
        residual = torch.relu(self.norm2(self.conv2(residual)))
        residual = self.norm3(self.conv3(residual))
        return torch.relu(residual + self.shortcut(x))


IMAGENET_STAGES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A residual network with a 3x3 stem of stride 1 and no max-pool, for images such as CIFAR's.

    Depths 18, 34, 50, 101 and 152 have the stages of table 1, 64 to 512 wide; any other depth,
    6k + 2, has the three stages of section 4.2, 16 to 64 wide. All use projection shortcuts where
    the shape changes; section 4.2 pads with zeros instead, which has 1 % fewer parameters at
    depth 20. `dropout` is the probability of dropping a feature before the classifier.
    """

    def __init__(self, depth: int, *, classes: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        if depth in IMAGENET_STAGES:
            block, counts = IMAGENET_STAGES[depth]
            first_width = 64
        else:
            block, counts = BasicBlock, ((depth - 2) // 6,) * 3
            first_width = 16
        self.stem = convolution(channels, first_width, 3)
        self.norm = nn.BatchNorm2d(first_width)
        blocks = []
        in_channels = first_width
        for stage, count in enumerate(counts):
            width = first_width * 2**stage
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(in_channels, width, stride))
                in_channels = block.expansion * width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to logits [N, classes]."""
        x = self.blocks(self.stem_features(x))
        return self.classifier(self.dropout(x.mean((2, 3))))

    def stem_features(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to what the first block reads."""
        return torch.relu(self.norm(self.stem(x)))
