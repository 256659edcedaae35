"""What Python objects hold, and how that is exchanged: in place, by building anew, or not.

What holds an object and can neither be written nor built anew (a closure, an iterator) has no way
to exchange it.
"""

import dis
import gc
import types
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from torch import nn

from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.replacement.containers import (
    CONTAINERS,
    Children,
    Holder,
    NewOf,
    is_atom,
)

# Of a sparse layer: what it knows of itself, and of its copies in other models.
SPARSE_STATE = frozenset(
    ("_layout", "_known", "_leader", "_probe", "is_updated", "copies", "origin", "_first")
)
_WRAPPED_HOOK = nn.modules.module._WrappedHook
# Packages whose objects hold no layers of a user, but for modules; some reach the whole program.
_APART = frozenset(
    (
        *("torch", "numpy", "triton", "sparse_engine", "sparse_kernels"),
        *("builtins", "types", "weakref", "logging", "threading", "multiprocessing"),
    )
)


def holders_of(value: Any) -> list[Holder]:
    """Return how an object holds others; in several ways, if it is a list with attributes."""
    kind = type(value)  # not __class__, which a weak proxy has of another
    if issubclass(kind, type):
        return [_CLASS] if _is_users(value) else []
    if is_atom(value):
        return []
    holders = [holder for kinds, holder in _KINDS if issubclass(kind, kinds)][:1]
    has_attributes = kind.__dictoffset__ or any(_slots(value))
    if issubclass(kind, nn.Module) or kind is _WRAPPED_HOOK or (_is_users(kind) and has_attributes):
        holders.append(_OBJECT)
    is_opaque = not holders and (_is_users(kind) or kind.__module__ == "builtins")
    return [_OPAQUE] if is_opaque and gc.is_tracked(value) else holders


def _is_users(kind: type) -> bool:
    """Return whether a class may be a user's own, with attributes that hold layers."""
    return kind is types.SimpleNamespace or str(kind.__module__).partition(".")[0] not in _APART


def _function_children(function: Any) -> Children:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            yield f" (variable '{name}' of a closure)", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    yield from ((" (a default argument)", value) for value in defaults)
    yield from ((f".{name}", value) for name, value in vars(function).items())
    held = {n: function.__globals__.get(n) for n in function.__code__.co_names}
    if not all(map(is_atom, held.values())):
        read = _global_names(function.__code__)
        yield from ((f" (global variable '{n}')", v) for n, v in held.items() if n in read)


@lru_cache(maxsize=10_000)
def _global_names(code: types.CodeType) -> frozenset[str]:
    """Return which of the names in a function's code, attributes among them, are globals."""
    instructions = dis.get_instructions(code)
    return frozenset(i.argval for i in instructions if i.opname == "LOAD_GLOBAL")


def _object_children(value: Any) -> Children:
    for name, item in _attributes(value):
        if name == "_modules" and issubclass(type(value), nn.Module):
            yield from ((f".{child}", module) for child, module in item.items())
        else:
            yield f".{name}", item
    yield from ((f".{name}", slot.__get__(value)) for name, slot in _slots(value))
    yield "", type(value)


def _write_object(value: Any, new_of: NewOf) -> None:
    own = object.__getattribute__(value, "__dict__") if hasattr(value, "__dict__") else {}
    for name, item in _attributes(value):
        if name == "_modules" and issubclass(type(value), nn.Module):
            for child, module in item.items():
                item[child] = new_of(module)
        elif (new := new_of(item)) is not item:
            own[name] = new
    for _, slot in _slots(value):
        item = slot.__get__(value)
        if (new := new_of(item)) is not item:
            slot.__set__(value, new)


def _attributes(value: Any) -> list[tuple[str, Any]]:
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return []
    apart = set[str]()
    if issubclass(type(value), nn.Module):
        apart |= {"_parameters", "_buffers", "_compiled_call_impl"}
    if issubclass(type(value), SparseLayer):
        apart |= SPARSE_STATE
    return [(name, item) for name, item in own.items() if name not in apart]


def _slots(value: Any) -> Iterator[tuple[str, Any]]:
    for kind in type(value).__mro__:
        for name, slot in vars(kind).items():
            if isinstance(slot, types.MemberDescriptorType) and "__slots__" in vars(kind):
                try:
                    slot.__get__(value)
                except AttributeError:  # not set
                    continue
                yield name, slot


def _class_children(kind: type) -> Children:
    for name, value in list(vars(kind).items()):
        if not name.startswith("__") or isinstance(value, types.FunctionType):
            yield f".{name}", value
    yield from (("", base) for base in kind.__bases__)


def _write_class(kind: type, new_of: NewOf) -> None:
    for name, value in list(vars(kind).items()):
        if (new := new_of(value)) is not value:
            setattr(kind, name, new)


def _descriptor_children(value: Any) -> Children:
    names = ("__func__", "fget", "fset", "fdel")
    yield from (("", getattr(value, name)) for name in names if hasattr(value, name))


def _opaque_children(value: Any) -> Children:
    return ((f" (a {type(value).__name__})", item) for item in gc.get_referents(value))


_OBJECT = Holder(_object_children, _write_object)
_CLASS = Holder(_class_children, _write_class)
_OPAQUE = Holder(_opaque_children)
_KINDS = (
    *CONTAINERS,
    (types.FunctionType, Holder(_function_children)),
    ((staticmethod, classmethod, property), Holder(_descriptor_children)),
)
