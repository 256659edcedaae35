"""A module that graphs of torch.fx record as one call, as they do with PyTorch's own layers."""

from typing import Any

from torch import fx, nn

from sparse_engine.errors import InputError


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
