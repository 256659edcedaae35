"""Models cut up among processes: FSDP2's can change blocks, those of other tools are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.optimizers.wrappers import with_wrapped
from sparse_engine.shards import is_sharded, modules_of_kind, why_not_by_slots

_INSTEAD = "use fully_shard (FSDP2) or DistributedDataParallel, or train with fixed blocks"
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


class Shards:
    """The modules of a model that fully_shard was called with."""

    def __init__(self, model: nn.Module) -> None:
        """Look for them, and settle()."""
        self._modules = modules_of_kind(model, "FSDPModule")
        self.settle()

    @property
    def are_there(self) -> bool:
        """Whether fully_shard was called with any module of the model."""
        return bool(self._modules)

    def settle(self) -> None:
        """Let layers have their own parameters, where FSDP2 has left whole copies in their place.

        It does so after a forward without backward, and with set_reshard_after_backward(False).
        """
        for module in self._modules:
            module.reshard()

    def check_processes(self, layers: Mapping[str, SparseLayer], count: int) -> None:
        """Raise InputError unless those that share values are those that update them together."""
        cut = {n: layer.values for n, layer in layers.items() if is_sharded(layer.values)}
        for name, values in cut.items() if self.are_there else ():
            size = values.device_mesh.size()  # type: ignore[attr-defined]
            if size != count:
                raise InputError(
                    f"the values of layer '{name}' are cut up among {size} processes, and "
                    f"process_group has {count}: give DynamicSparsity the group of all processes "
                    "of the mesh"
                )


def refuse_sharded(layers: Mapping[str, SparseLayer], shards: Shards) -> None:
    """Raise InputError if a layer's values are cut up in another way than by FSDP2, in slots."""
    for name, layer in layers.items():
        values = layer.values
        reason = why_not_by_slots(values) if values.ndim == 3 else "a flat part"
        if reason is None and is_sharded(values) and not shards.are_there:
            reason = "a DTensor that fully_shard did not make, as of tensor parallelism"
        if reason is not None:
            raise InputError(
                f"the values of layer '{name}' are sharded ({reason}), and DynamicSparsity "
                f"exchanges whole slots: {_INSTEAD}"
            )


def check_known(layers: Mapping[str, SparseLayer], known: Mapping[str, Tensor]) -> None:
    """Raise InputError if values were cut up after the optimizers' owners have met them.

    Args:
        layers: by name.
        known: their values as they were then.
    """
    for name, layer in layers.items():
        values = layer.values
        if values is not known[name] and (is_sharded(values) or values.ndim != 3):
            raise InputError(
                f"the values of layer '{name}' are sharded since DynamicSparsity was made: call "
                "fully_shard first, then make the optimizer, then DynamicSparsity"
            )
