"""Which layers of a model can be sparse, why others cannot, and which models are not touched."""

import fnmatch
from collections import Counter
from collections.abc import Container, Iterator, Sequence

from torch import nn
from torch.nn.parameter import UninitializedTensorMixin
from torch.nn.utils.parametrize import is_parametrized

from sparse_engine.errors import InputError, nearest
from sparse_engine.layers.attention import input_weights, why_whole
from sparse_engine.layers.dense_kinds import is_dense_kind, is_own_class
from sparse_engine.shards import is_sharded

# Compared by name: importing them takes a second, or fails where torch has no such part.
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")
_COMPILED = "OptimizedModule"
CUT_UP = "weight is a DTensor"
_SKIPPED = "stays_dense"  # the attribute of a layer that is to stay dense


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
    """Yield name and module of every layer that could be sparse, once each.

    These are nn.Linear, nn.Conv2d, nn.Conv1d, the Conv1D of transformers, and subclasses.
    """
    for name, module in model.named_modules():
        if is_dense_kind(module):
            yield name, module


def skip_layers(model: nn.Module, skip: str | Sequence[str]) -> None:
    """Leave these layers dense and outside the budget from now on, and no others.

    Args:
        model: whose layers remember it, copies of them too.
        skip: a name or a pattern with `*`, or several: as a list, or in a string, with commas.

    Raises:
        InputError: a pattern that matches no layer.
    """
    layers, found = dict(dense_layers(model)), set()
    for layer in layers.values():
        vars(layer).pop(_SKIPPED, None)
    parts = skip.split(",") if isinstance(skip, str) else skip
    patterns = [part.strip() for part in parts if part.strip()]
    for pattern in patterns:
        matching = fnmatch.filter(layers, pattern)
        if not matching:
            raise InputError(f"skip '{pattern}' matches no layer{nearest(pattern, layers)}")
        found |= set(matching)
    for name in found:
        setattr(layers[name], _SKIPPED, True)


def skip_reasons(model: nn.Module) -> dict[str, str]:
    """Return why layers stay dense and outside the budget, by name.

    An nn.MultiheadAttention that stays whole is there with the names of its parameters.
    """
    shared, compiled = shared_parameters(model), compiled_modules(model)
    reasons = {}
    for name, module in dense_layers(model):
        if hasattr(module, _SKIPPED):
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
    groups = getattr(layer, "groups", 1)
    if groups != 1:
        return f"groups={groups}"
    if made := _made_by_tools(layer):
        return made
    if not is_own_class(layer):
        kind = type(layer)
        # A library may give its subclass the same name.
        known = kind.__name__ in ("Linear", "Conv1d", "Conv2d")
        return f"{f'{kind.__module__}.' if known else ''}{kind.__name__} is a subclass"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "weight is no parameter"
    if is_sharded(weight):
        return CUT_UP
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
