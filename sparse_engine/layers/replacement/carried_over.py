"""What hangs on a layer and goes along when another takes its place; what does not is named.

Hooks of modules, attributes and bias are the same objects; what belongs to the weight (its
gradient, attributes of its shape) is moved into the blocks.
"""

import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.layers.attention import INPUTS, ProjectedAttention, common_attributes
from sparse_engine.layers.base import SparseLayer, weight_parameter
from sparse_engine.layers.dense_kinds import is_dense_kind
from sparse_engine.layers.modules import GEOMETRY
from sparse_engine.layers.optimizer_state import moved
from sparse_engine.layers.replacement.references import SPARSE_STATE

NewOf = Callable[[Any], Any]

ATTENTIONS = (nn.MultiheadAttention, ProjectedAttention)
_STORES = ("_parameters", "_buffers", "_modules")
_SPARSE = {*SPARSE_STATE, *GEOMETRY, "final_active", "ran_on", "in_features", "out_features"}
_SPARSE |= {"is_channels_last"}  # by the weight
# Whose change is a change of what the layer computes.
_FORWARDS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl", "_conv_forward")


def refuse_own_forward(name: str, layer: nn.Module) -> None:
    """Raise InputError if somebody has given a layer a forward of its own, not by a class."""
    for method in _FORWARDS:
        found = vars(layer).get(method)
        is_method = isinstance(found, types.MethodType)
        if is_method and found.__func__ is getattr(type(layer), method, None):
            continue  # as remove_hook_from_module of accelerate leaves it
        if found is not None:
            tool = " (accelerate's hook)" if hasattr(layer, "_hf_hook") else ""
            raise InputError(
                f"layer '{name}' has a {method} of its own{tool}, which another layer would not "
                f"run: take it off before this call, or leave it dense with skip=['{name}*']"
            )


def carry_over(old: nn.Module, new: nn.Module, new_of: NewOf) -> list[str]:
    """Give a layer what hangs on another, of which it takes the place.

    Args:
        old: stays as it is; hooks' tables and other mutable things are then both modules'.
        new: made from it.
        new_of: what stands for an object that has been exchanged.

    Returns:
        What could not be carried over, in words.
    """
    lost: list[str] = []
    _carry_hooks(old, new)
    if all(is_layer(m) or isinstance(m, ATTENTIONS) for m in (old, new)):
        lost += _carry_attributes(old, new, new_of)
        lost += _carry_stores(old, new, new_of)
    if is_layer(old) and is_layer(new):
        lost += _carry_weight(old, new)
    if isinstance(old, SparseLayer) and not type(old).__module__.startswith("sparse_engine."):
        lost.append(f"its class {type(old).__name__}")
    if isinstance(old, ATTENTIONS):
        lost += _lost_of_attention(old)
    return lost


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is a sparse layer, or a dense one that may become sparse."""
    return isinstance(module, SparseLayer) or is_dense_kind(module)


def _carry_hooks(old: nn.Module, new: nn.Module) -> None:
    for name, value in vars(old).items():
        if _is_of_hooks(name):
            # The same table, by which a handle removes its hook.
            setattr(new, name, value)


def _is_of_hooks(name: str) -> bool:
    return name.startswith("_") and ("_hooks" in name or "_is_full_backward" in name)


def _carry_attributes(old: nn.Module, new: nn.Module, new_of: NewOf) -> Iterator[str]:
    own = _own_names(type(old))
    for name, value in vars(old).items():
        if name in own or name in _FORWARDS or _is_of_hooks(name):
            continue
        if name == "_compiled_call_impl":
            yield from ["compile()"] if value is not None else []
        elif callable(getattr(type(old), name, None)):
            yield f"the method {name} set on it"
        elif name in vars(new) or (hasattr(type(new), name) and not hasattr(type(old), name)):
            yield f"its attribute {name}, which means something else there"
        else:
            vars(new)[name] = new_of(value)


def _carry_stores(old: nn.Module, new: nn.Module, new_of: NewOf) -> Iterator[str]:
    own = _own_members(old)
    for store in _STORES:
        for name, value in vars(old)[store].items():
            if name in own or (store == "_parameters" and value is None):
                continue
            if hasattr(new, name):
                yield f"its {name}, which means something else there"
                continue
            vars(new)[store][name] = new_of(value)
            if name in old._non_persistent_buffers_set:
                new._non_persistent_buffers_set.add(name)


@torch.no_grad()
def _carry_weight(old: nn.Module, new: nn.Module) -> Iterator[str]:
    before, after = weight_parameter(old), weight_parameter(new)
    if before is after or before is None:
        return
    for name, value in vars(before).items():
        if not (isinstance(value, Tensor) and value.shape == before.shape):
            setattr(after, name, value)
        elif value.is_floating_point() and not value.is_meta:
            setattr(after, name, moved(value, old, new))
        else:
            yield f"the attribute {name} of its weight"
    if before.grad is not None and not before.is_meta:
        after.grad = moved(before.grad, old, new)
    yield from _hooks_of(before, "its weight")


def _lost_of_attention(old: nn.Module) -> Iterator[str]:
    parts = {name: old._parameters.get(name) for name in _own_members(old)}
    if isinstance(old, ProjectedAttention):
        layers = {name: getattr(old, name) for name in INPUTS}
        parts = {f"the weight of its {n}": weight_parameter(layer) for n, layer in layers.items()}
        parts |= {f"the bias of its {n}": layer.bias for n, layer in layers.items()}
        for name, layer in layers.items():
            if any(vars(layer)[table] for table in vars(layer) if table.endswith("_hooks")):
                yield f"hooks of its {name}"
    found = {name: parameter for name, parameter in parts.items() if parameter is not None}
    for kind in ("weight", "bias"):
        alike = [p for name, p in found.items() if kind in name]
        kept = common_attributes(alike) if alike else {}
        lost = dict.fromkeys(attribute for p in alike for attribute in vars(p))
        yield from (f"the attribute {a} of a {kind}" for a in lost if a not in kept)
    for name, parameter in found.items():
        yield from _hooks_of(parameter, name)


def _hooks_of(parameter: Tensor, what: str) -> Iterator[str]:
    tables = (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None))
    hooks = [hook for table in tables for hook in (table or {}).values()]
    # Ours are of the step that a rule of topology updates is looking at.
    hooks = [h for h in hooks if not getattr(h, "__module__", "").startswith("sparse_kernels")]
    if hooks:
        yield f"{len(hooks)} hook{'s' * (len(hooks) > 1)} of the gradient of {what}"


def _own_members(layer: nn.Module) -> tuple[str, ...]:
    """Return the names of parameters, buffers and modules that a layer has by itself."""
    if isinstance(layer, ATTENTIONS):
        packed = ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v")
        return (*packed, *INPUTS, *(f"{p}_weight" for p in INPUTS), "out_proj")
    if isinstance(layer, SparseLayer):
        return ("values", "bias", "block_ids", "block_check")
    return ("weight", "bias")


@cache
def _own_names(kind: type) -> frozenset[str]:
    """Return the names of attributes that a layer of a class has by itself."""
    own = set(vars(nn.Module()))
    if issubclass(kind, SparseLayer):
        return frozenset(own | _SPARSE)
    if issubclass(kind, ATTENTIONS):
        attention = nn.MultiheadAttention(1, 1, device="meta")
        return frozenset({*own, *vars(attention), *vars(ProjectedAttention(attention))})
    for dense in (nn.Conv2d(1, 1, 1, device="meta"), nn.Conv1d(1, 1, 1, device="meta")):
        if issubclass(kind, type(dense)):
            return frozenset({*own, *vars(dense)})
    return frozenset({*own, *vars(nn.Linear(1, 1, device="meta")), "nx", "nf"})
