"""The convolution that all our convolutional networks are made of."""

from torch import nn


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
