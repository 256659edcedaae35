"""Any torchvision classifier by name, without pretrained weights."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparse_engine.errors import InputError, first_line, nearest
from sparse_engine.installed import require
from sparse_engine.layers.surgery import separate_projections


class RepeatedChannel(nn.Module):
    """Shows one-channel images to a model for three-channel ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 1, H, W] to the model's logits [N, classes]."""
        return self.model(x.expand(-1, 3, -1, -1))


def torchvision_model(
    name: str, *, classes: int, channels: int, height: int, width: int, dropout: float = 0.0
) -> nn.Module:
    """Return torchvision's classifier `name`, randomly initialised.

    A `dropout` above 0 replaces the probability of each dropout layer that the model has.

    Raises InputError for an unknown name, for channels other than 1 or 3, for a dropout on a model
    without dropout layers, and for images that the model cannot take.
    """
    require(f"torchvision/{name}", "torchvision")
    _check_known(name)
    if channels not in (1, 3):
        raise InputError(
            f"torchvision/{name} takes images of 1 or 3 channels, not {channels}; "
            "choose one of our own models, such as 'resnet18'"
        )
    try:
        model = _construct(name, classes, height, width)
        _pass_without_data(model, height, width)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise InputError(
            f"torchvision/{name} cannot take images of {height}x{width} pixels ({reason}); "
            "choose one of our own models, such as 'resnet18'"
        ) from error
    if dropout > 0:
        _set_dropout(model, name, dropout)
    separate_projections(model)  # the same layers and costs, sparse or not
    return RepeatedChannel(model) if channels == 1 else model


def _check_known(name: str) -> None:
    import torchvision  # here, since it takes a second that other models need not wait for

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"unknown torchvision classifier {name!r}{nearest(name, known)}")


def _construct(name: str, classes: int, height: int, width: int) -> nn.Module:
    from torchvision.models import get_model

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # In training their auxiliary heads would return more than one tensor of logits.
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        options = {"image_size": height}
    elif name == "maxvit_t":
        options = {"input_size": (height, width)}
    # A RegNet reads tensors while it is built, which must not be meta tensors then.
    device = torch.get_default_device()
    with torch.device("cpu") if name.startswith("regnet") else nullcontext():
        model = get_model(name, weights=None, num_classes=classes, **options)
    return model.to(device)


def _pass_without_data(model: nn.Module, height: int, width: int) -> None:
    # Torchvision does not say which image sizes a model takes: meta tensors find out at no cost.
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {key: tensor.to("meta") for key, tensor in tensors.items()}
    images = torch.empty(1, 3, height, width, device="meta")
    model.eval()
    with torch.no_grad():
        functional_call(model, state, (images,))
    model.train()


def _set_dropout(model: nn.Module, name: str, dropout: float) -> None:
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise InputError(
            f"torchvision/{name} has no dropout layers; choose another model or dropout 0"
        )
    for layer in layers:
        layer.p = dropout
