"""Models whose values are cut up among processes: updates need them whole, and refuse them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.optimizers.wrappers import with_wrapped

_INSTEAD = "use DistributedDataParallel, or leave it out and train with fixed blocks"
_FSDP1 = (
    "FSDP1 (FullyShardedDataParallel) lays the values of many layers end to end in one flat "
    "parameter and gives each process a piece"
)
_DEEPSPEED = "DeepSpeed ZeRO trains flat copies of parts of the parameters"
# By the names of classes, as importing them takes long, or fails.
_TOOLS = {
    "FullyShardedDataParallel": _FSDP1,
    "FSDPStrategy": _FSDP1,  # Lightning's
    "DeepSpeedEngine": _DEEPSPEED,
    "DeepSpeedStrategy": _DEEPSPEED,
    "DeepSpeedOptimizerWrapper": _DEEPSPEED,  # accelerate's
}


def refuse_tools(*kinds: type) -> None:
    """Raise InputError if a class is of a tool that cuts parameters up, or inherits from one.

    kinds: of modules, optimizers or a trainer's strategy.
    """
    for kind in kinds:
        for parent in kind.__mro__:
            is_deepspeed = parent.__module__.partition(".")[0] == "deepspeed"
            reason = _DEEPSPEED if is_deepspeed else _TOOLS.get(parent.__name__)
            if reason is not None:
                raise InputError(
                    f"{reason} ({parent.__name__}), and DynamicSparsity exchanges whole blocks: "
                    f"{_INSTEAD}"
                )


def refuse_tools_of(model: nn.Module, optimizers: Iterable[Any]) -> None:
    """Raise InputError if a model or an optimizer is made by such a tool."""
    refuse_tools(*{type(module) for module in model.modules()})
    refuse_tools(*(type(part) for one in optimizers for part in with_wrapped(one)))


def refuse_sharded(layers: Mapping[str, SparseLayer]) -> None:
    """Raise InputError if a layer's values are a part of them, or a DTensor."""
    for name, layer in layers.items():
        values = layer.values
        if hasattr(values, "device_mesh") or values.ndim != 3:
            kind = "a DTensor (FSDP2, tensor parallelism)" if values.ndim == 3 else "a flat part"
            raise InputError(
                f"the values of layer '{name}' are sharded ({kind}), and DynamicSparsity needs "
                f"them whole: {_INSTEAD}"
            )
