"""Surgery of optimizer state, in place, so that shapes and addresses never change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from sparse_engine.schema import check_like, demand


def state_tensors(optimizer: Optimizer, parameter: Parameter) -> list[Tensor]:
    """Return the state that has the parameter's shape: momenta of SGD, Adam, AdamW and others."""
    state = optimizer.state.get(parameter, {})
    return [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]


def zero_slots(optimizer: Optimizer, parameter: Parameter, slots: Tensor) -> None:
    """Zero the state of some slots of values [Z, BC, BO]: a grown block starts without momentum.

    Source: Evci et al. 2020, whose code resets the momentum of new connections.
    """
    for state in state_tensors(optimizer, parameter):
        state.index_fill_(0, slots, 0)


def start_momenta(optimizer: Optimizer) -> None:
    """Give every parameter of SGD the momentum 0, from which the first step is like any other."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


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
