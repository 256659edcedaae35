"""Tensors and words in a file of the safetensors format, which many libraries read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparse_engine.errors import InputError
from sparse_engine.runs.files import replacing


def write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Write tensors by name, and words; the file is whole or not there.

    Raises:
        InputError: a kind of tensor that the format lacks; RunFailure: the file cannot be written.
    """
    # The library takes neither tensors that share memory nor those in another memory order.
    own = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in tensors.items()
    }
    try:
        content = save(own, dict(metadata))
    except (KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"safetensors files cannot hold this network: {error}") from None
    with replacing(path) as file:
        file.write(content)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, on the CPU, and its words.

    Raises:
        InputError: the file is missing, truncated, or not of the format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names, words = file.keys(), file.metadata() or {}
            return {name: file.get_tensor(name) for name in names}, words
    except OSError as error:
        raise InputError(f"file '{path}' cannot be read: {error}") from None
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"file '{path}' is truncated or no safetensors file: {error}; export it again"
        ) from None
