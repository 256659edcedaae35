"""Surgery of optimizer state, in place, so that shapes and addresses never change."""

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


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
