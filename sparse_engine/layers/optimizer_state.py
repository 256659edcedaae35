"""The state that an optimizer has of a layer's weight: found, moved along, and saved."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from sparse_engine.layers.base import SparseLayer, weight_parameter
from sparse_engine.layers.dense_kinds import planned, unplanned
from sparse_engine.schema import check_like, demand
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks


@torch.no_grad()
def carry_state(optimizer: Optimizer, old: nn.Module, new: nn.Module) -> None:
    """Give the weight of a new layer the old one's place in the optimizer, and its state.

    State of blocks that both have is kept, that of others is zero.
    """
    before, after = weight_parameter(old), weight_parameter(new)
    for group in optimizer.param_groups:
        group["params"] = [after if p is before else p for p in group["params"]]
    state = optimizer.state.pop(before, None)
    if state:
        optimizer.state[after] = {
            key: moved(value, old, new)
            if isinstance(value, Tensor) and value.shape == before.shape
            else value
            for key, value in state.items()
        }


def state_tensors(optimizer: Optimizer, parameter: Parameter) -> list[Tensor]:
    """Return the state that has the parameter's shape: momenta of SGD, Adam, AdamW and others."""
    state = optimizer.state.get(parameter, {})
    return [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]


def start_momenta(optimizer: Optimizer) -> None:
    """Give every parameter of SGD the momentum 0, from which the first step is like any other."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def moved(state: Tensor, old: nn.Module, new: nn.Module) -> Tensor:
    """Return what one layer has of every weight (its weight parameter's shape) for another layer.

    What is in blocks that only the new layer has is zero.
    """
    dense = state if isinstance(old, SparseLayer) else planned(old, state)
    if isinstance(old, SparseLayer):
        dense = scatter_blocks(state, old.layout.tensors(), old.layout.sizes())
    if isinstance(new, SparseLayer):
        dense = dense.reshape(new.layout.shape)
        return gather_blocks(dense, new.layout.tensors(), new.layout.sizes())
    return unplanned(new, dense).contiguous()


class Momenta:
    """The state of an optimizer as a checkpoint holds it; what the optimizer is set to stays."""

    def __init__(self, optimizer: Optimizer, rate: Tensor) -> None:
        """Be those of an optimizer, whose learning rate is a tensor."""
        self._optimizer, self._rate = optimizer, rate

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return self._optimizer.state_dict()

    def check_state(self, state: Any) -> None:
        """Raise InputError unless a state has the momenta of these parameters."""
        demand(isinstance(state, Mapping), "optimizer", "an object", state)
        check_like(state.get("state"), self.state_dict()["state"], "optimizer.state")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the momenta in state_dict()."""
        self._optimizer.load_state_dict({**self.state_dict(), "state": state["state"]})
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
