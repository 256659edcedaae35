"""Data types in which sparse layers compute; others are refused before anything is changed."""

from collections.abc import Mapping

import torch
from torch import nn

from sparse_engine.errors import InputError

KNOWN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_data_type(dtype: torch.dtype | None, what: str = "a sparse layer") -> None:
    """Raise InputError unless sparse layers compute with a data type; None is PyTorch's default."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in KNOWN:
        raise InputError(
            f"{what} cannot have weights of {dtype}: sparse layers compute in float16, bfloat16, "
            "float32 and float64"
        )


def check_data_types(layers: Mapping[str, nn.Module]) -> None:
    """Raise InputError unless layers, by name, can become sparse as they are."""
    for name, layer in layers.items():
        for parameter in layer.parameters(recurse=False):
            if parameter.dtype not in KNOWN:
                raise InputError(
                    f"layer '{name}' has a parameter of {parameter.dtype}, which sparse layers do "
                    f"not compute with: leave it dense with skip=['{name}']"
                )
