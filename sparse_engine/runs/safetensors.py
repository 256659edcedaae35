"""Tensors and words in a file of the safetensors format, which many libraries read.

Source: github.com/huggingface/safetensors, README, "Format": the length of a header in eight bytes,
the header as JSON with each tensor's data type, shape and place, then the numbers, without holes.
The format is so small that these lines stand for its library, which needs not be installed; tests
hold them to the format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import InputError
from sparse_engine.runs.files import replacing

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
_ALIGNMENT = 8


def write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Write tensors by name, and words; the file is whole or not there.

    Raises:
        InputError: a data type that the format lacks; RunFailure: the file cannot be written.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)}
    place = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise InputError(f"safetensors files hold no {tensor.dtype}, the type of '{name}'")
        end = place + tensor.numel() * tensor.element_size()
        kind, shape = _NAMES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            file.write(_bytes_of(tensor))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, on the CPU, and its words.

    Raises:
        InputError: the file is missing, truncated, or not of the format.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"file '{path}' cannot be read: {error.strerror}") from None
    try:
        return _parsed(content)
    # JSON of any form may stand where a header should.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"file '{path}' is truncated or no safetensors file: {error}; export it again"
        ) from None


def _parsed(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or start > len(content):
        raise ValueError(f"a header of {start - 8} bytes in {len(content)}")
    header = json.loads(content[8:start])
    metadata = header.pop(METADATA, {})
    tensors, place = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
        first, last = entry["data_offsets"]
        count = math.prod(shape)
        if min([0, *shape]) < 0 or first != place or last - first != count * dtype.itemsize:
            raise ValueError(f"'{name}' has no such place in the file")
        if start + last > len(content):
            raise ValueError(f"'{name}' ends after the file")
        own = bytearray(content[start + first : start + last])
        flat = torch.frombuffer(own, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        tensors[name], place = flat.reshape(shape), last
    if start + place != len(content):
        raise ValueError(f"{len(content) - start - place} bytes belong to no tensor")
    return tensors, metadata


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
