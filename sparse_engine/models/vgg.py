"""VGG-16 with batch norm for small images (Simonyan & Zisserman 2015, table 1, column D)."""

import torch
from torch import Tensor, nn

from sparse_engine.models.resnet import convolution

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class ConvolutionNormReLU(nn.Module):
    """A 3x3 convolution, batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = convolution(in_channels, out_channels, 3)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H, W]."""
        return torch.relu(self.norm(self.conv(x)))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five stages, global average pooling and one linear classifier.

    A max-pool of 2x2 ends each stage; it is left out where the image (`height` x `width` pixels)
    would shrink below one pixel. `dropout` is the probability of dropping a feature before the
    classifier.
    """

    def __init__(
        self, *, classes: int, channels: int, height: int, width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = channels
        size = min(height, width)
        for out_channels, count in STAGES:
            for _ in range(count):
                layers.append(ConvolutionNormReLU(in_channels, out_channels))
                in_channels = out_channels
            if size >= 2:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, height, width] to logits [N, classes]."""
        return self.classifier(self.dropout(self.pixel_features(x).mean((2, 3))))

    def pixel_features(self, x: Tensor) -> Tensor:
        """Map images [N, channels, height, width] to what is averaged over pixels."""
        return self.features(x)
