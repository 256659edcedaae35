"""PyTorch's random numbers, which dropout draws: all else is a function of seed and step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_engine.schema import check_like, demand


class RandomState:
    """The random numbers of the CPU."""

    def state_dict(self) -> Tensor:
        """Return where they are."""
        return torch.get_rng_state()

    def check_state(self, state: Any) -> None:
        """Raise InputError unless a state is as long as one."""
        check_like(state, torch.get_rng_state(), "random_state")

    def load_state_dict(self, state: Tensor) -> None:
        """Go on from there; RuntimeError if it is no state."""
        torch.set_rng_state(state)


class DeviceRandomState:
    """The random numbers of a GPU; of another device none."""

    def __init__(self, device: torch.device) -> None:
        """Be those of a device."""
        self._device = device

    def state_dict(self) -> Tensor | None:
        """Return where they are."""
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    def check_state(self, state: Any) -> None:
        """Raise InputError unless a state is bytes, or None as of a run on a CPU."""
        fits = isinstance(state, Tensor) and state.dtype == torch.uint8
        demand(state is None or fits, "device_random_state", "bytes or nothing", state)

    def load_state_dict(self, state: Tensor | None) -> None:
        """Go on from there, if state and device are of a GPU; RuntimeError if it is no state."""
        if state is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
