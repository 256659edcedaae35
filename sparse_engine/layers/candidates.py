"""Which layers of a model can be sparse, why others cannot, and which models are not touched."""

import fnmatch
from collections import Counter
from collections.abc import Container, Iterator, Sequence

from torch import nn
from torch.nn.parameter import UninitializedTensorMixin
from torch.nn.utils.parametrize import is_parametrized

from sparse_engine.errors import InputError, nearest
from sparse_engine.layers.attention import input_weights, why_whole

# The output projection of nn.MultiheadAttention is a Linear under another name.
LINEARS = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
# Compared by name: importing them takes a second, or fails where torch has no such part.
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")
_COMPILED = "OptimizedModule"


def changeable(model: nn.Module) -> nn.Module:
    """Return the model whose layers can be replaced in place.

    That is `model` itself, or what is inside of torch.compile's wrapper, which compiles anew when
    modules have changed.

    Raises:
        InputError: a wrapper holds the model's parameters, or a layer has no shape yet.
    """
    if _kind(model, (_COMPILED,)):
        model = model._orig_mod
    for name, module in model.named_modules():
        if wrapper := _kind(module, _WRAPPERS):
            where = f"module '{name}'" if name else "the model"
            raise InputError(
                f"{where} is wrapped in {wrapper}, which holds its present parameters: "
                "change the model first, then wrap it"
            )
    check_shapes(model)
    return model


def check_shapes(model: nn.Module) -> None:
    """Raise InputError if a lazily built layer does not know its shape yet."""
    for name, module in model.named_modules():
        if any(isinstance(p, UninitializedTensorMixin) for p in module._parameters.values()):
            raise InputError(
                f"layer '{name}' ({type(module).__name__}) has no shape yet: "
                "run the model once on an example first"
            )


def dense_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of every nn.Conv2d and nn.Linear, subclasses included, once each."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield name, module


def skip_reasons(model: nn.Module, skip: Sequence[str] = ()) -> dict[str, str]:
    """Return why layers stay dense and outside the budget, by name.

    An nn.MultiheadAttention that stays whole is there with the names of its parameters.

    Raises:
        InputError: a pattern that matches no layer.
    """
    names = [name for name, _ in dense_layers(model)]
    for pattern in skip:
        if not fnmatch.filter(names, pattern):
            raise InputError(f"skip '{pattern}' matches no layer{nearest(pattern, names)}")
    shared, compiled = shared_parameters(model), compiled_modules(model)
    reasons = {}
    for name, module in dense_layers(model):
        if any(fnmatch.fnmatch(name, pattern) for pattern in skip):
            reasons[name] = "skip"
        elif module in compiled:
            reasons[name] = "compiled by itself"
        elif reason := _why_dense(module, shared):
            reasons[name] = reason
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and (reason := why_whole(module, shared)):
            prefix = f"{name}." if name else ""
            reasons |= {prefix + parameter: reason for parameter, _ in input_weights(module)}
    return reasons


def shared_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that several modules hold."""
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    return {key for key, count in uses.items() if count > 1}


def compiled_modules(model: nn.Module) -> set[nn.Module]:
    """Return the modules that are compiled by themselves; to replace them changes nothing."""
    inside = {m._orig_mod for m in model.modules() if _kind(m, (_COMPILED,))}
    return inside | {m for m in model.modules() if m._compiled_call_impl is not None}


def _why_dense(layer: nn.Module, shared: Container[int]) -> str | None:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"groups={layer.groups}"
    if made := _made_by_tools(layer):
        return made
    if type(layer) not in (*LINEARS, nn.Conv2d):
        kind = type(layer)
        # A library may give its subclass the same name.
        known = kind.__name__ in ("Linear", "Conv2d")
        return f"{f'{kind.__module__}.' if known else ''}{kind.__name__} is a subclass"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "weight is no parameter"
    if type(weight) is not nn.Parameter:
        return f"weight is a {type(weight).__name__}"
    if getattr(layer, "bias", None) is not layer._parameters.get("bias"):
        return "bias is no parameter"
    if id(weight) in shared:
        return "weight shared with another module"
    return None


def _made_by_tools(layer: nn.Module) -> str | None:
    """Return which of a layer's parameters a tool of torch.nn.utils makes from others."""
    if is_parametrized(layer):
        name, tools = next(iter(layer.parametrizations.items()))
        return f"{name} is made by the parametrization {type(tools[0]).__name__.lstrip('_')}"
    for hook in layer._forward_pre_hooks.values():
        name = getattr(hook, "_tensor_name", getattr(hook, "name", None))
        if name in ("weight", "bias") and name not in layer._parameters:
            return f"{name} is made by {type(hook).__name__}"
    return None


def _kind(module: nn.Module, names: Sequence[str]) -> str | None:
    """Return which of some class names a module's class, or one it inherits from, has."""
    return next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in names), None)
