"""The data types of --dtype: what runs under autocast."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Return the context that a network of --dtype runs in; fp32 runs as it is."""
    reduced = DTYPES[dtype if dtype != "fp32" else "bf16"]
    return torch.autocast(device.type, reduced, enabled=dtype != "fp32")
