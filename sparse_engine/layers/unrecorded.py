"""What is done beside whoever records operators: tracers, counters, transforms of functions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import _disable_current_modes, is_in_torch_dispatch_mode

from sparse_kernels.transforms import is_transformed, untransformed

_MODES = torch._C._TorchDispatchModeKey
_GRAPH_MODES = (_MODES.PROXY, _MODES.FUNCTIONAL, _MODES.FAKE)


def is_recorded() -> bool:
    """Return whether somebody sees every operator that runs now; for a compiler, ask torch."""
    recorded = torch.jit.is_tracing() or is_in_torch_dispatch_mode()
    return recorded or torch._C._are_functorch_transforms_active()


def is_traced() -> bool:
    """Return whether somebody makes a graph of functions or transforms them; for a compiler, ask.

    They expect plain tensors.
    """
    makes_graph = any(torch._C._get_dispatch_mode(mode) is not None for mode in _GRAPH_MODES)
    return torch.jit.is_tracing() or makes_graph or is_transformed()


@contextmanager
def unrecorded() -> Iterator[None]:
    """Hide what is done inside."""
    trace = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        with _disable_current_modes(), untransformed():
            yield
    finally:
        torch._C._set_tracing_state(trace)
