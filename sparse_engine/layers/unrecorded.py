"""What is done beside whoever records operators: tracers, counters, transforms of functions.

And what torch.fx records as one call of a module, as it does with PyTorch's own layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import _disable_current_modes, is_in_torch_dispatch_mode

from sparse_engine.errors import InputError
from sparse_kernels.transforms import untransformed

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
    is_transformed = torch._C._functorch.maybe_current_level() is not None
    return torch.jit.is_tracing() or makes_graph or is_transformed


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


class Leaf(nn.Module):
    """A module that is one node in graphs of torch.fx, whatever the tracer takes for a leaf."""

    # Not forward: hooks would be recorded too, and then be called twice.
    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, fx.Proxy):
                path = value.tracer.path_of_module(self)
                return value.tracer.create_proxy("call_module", path, args, kwargs)
        return super()._call_impl(*args, **kwargs)

    def __prepare_scriptable__(self) -> nn.Module:
        raise InputError(
            f"torch.jit.script cannot compile a {type(self).__name__}: use torch.jit.trace or "
            "torch.export, or densify(model) before"
        )
