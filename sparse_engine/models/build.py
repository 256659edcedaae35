"""Networks by name."""

from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.models.catalog import parse_name
from sparse_engine.models.mlp import MLP
from sparse_engine.models.resnet import ResNet
from sparse_engine.models.torchvision_model import torchvision_model
from sparse_engine.models.vgg import VGG16
from sparse_engine.models.wide_resnet import WideResNet


def build_model(
    name: str, *, classes: int, channels: int, height: int, width: int, dropout: float = 0.0
) -> nn.Module:
    """Return a randomly initialised network from images [N, channels, height, width] to logits.

    `name` is one of `catalog.names()` or of their families; `dropout` is a probability, and each
    model's docstring says where it applies. Works under `torch.device("meta")` too.

    Raises InputError for an unknown name, for counts that are not positive, for a dropout outside
    [0, 1), and for images that a torchvision model cannot take.
    """
    family, arguments = parse_name(name)
    image = {"channels": channels, "height": height, "width": width}
    for what, count in {"classes": classes, **image}.items():
        if count < 1:
            raise InputError(f"{what} must be at least 1, not {count}")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be at least 0 and below 1, not {dropout}")
    if family == "wrn":
        return WideResNet(*arguments, classes=classes, channels=channels, dropout=dropout)
    if family == "resnet":
        return ResNet(*arguments, classes=classes, channels=channels, dropout=dropout)
    if family == "vgg16":
        return VGG16(classes=classes, **image, dropout=dropout)
    if family == "mlp":
        return MLP(channels * height * width, classes=classes, dropout=dropout)
    return torchvision_model(*arguments, classes=classes, **image, dropout=dropout)
