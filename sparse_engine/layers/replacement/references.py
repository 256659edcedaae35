"""What Python objects hold, and how that is exchanged: in place, by building anew, or not.

A kind of holder yields labels and objects, as a user would write them: `.name`, `[0]`. What holds
an object and can neither be written nor built anew (a closure, an iterator) has no way to exchange.
"""

import dis
import functools
import gc
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.layers.base import SparseLayer

Children = Iterable[tuple[str, Any]]
NewOf = Callable[[Any], Any]

# Of a sparse layer: what it knows of itself, and of its copies in other models.
SPARSE_STATE = frozenset(
    ("_layout", "_known", "_leader", "_probe", "is_updated", "copies", "origin", "_first")
)
_WRAPPED_HOOK = nn.modules.module._WrappedHook
_ATOMS = frozenset(
    (int, float, complex, str, bytes, bool, type(None), type(...), torch.dtype, torch.device)
)
_OTHER_ATOMS = (Tensor, type, types.ModuleType, types.CodeType, types.FrameType)
# Packages whose objects hold no layers of a user, but for modules; some reach the whole program.
_APART = frozenset(
    (
        *("torch", "numpy", "triton", "sparse_engine", "sparse_kernels"),
        *("builtins", "types", "weakref", "logging", "threading", "multiprocessing"),
    )
)
# Methods that a layer has in whatever form it is.
_COMMON_METHODS = frozenset(("forward", "reset_parameters", *dir(nn.Module)))


@dataclass(frozen=True)
class Holder:
    """How objects of a kind hold others.

    children: label and object of everything held.
    write: exchanges what is held, in place; None if that cannot be done.
    rebuild: returns the object with other things held; None if that cannot be done.
    """

    children: Callable[[Any], Children]
    write: Callable[[Any, NewOf], None] | None = None
    rebuild: Callable[[Any, NewOf], Any] | None = None


def is_atom(value: Any) -> bool:
    """Return whether an object holds nothing that is looked at."""
    return type(value) in _ATOMS or issubclass(type(value), _OTHER_ATOMS)


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
    return kind is types.SimpleNamespace or kind.__module__.partition(".")[0] not in _APART


def _write_items(value: Any, new_of: NewOf) -> None:
    base = list if isinstance(value, list) else deque
    for index, item in enumerate(value):
        if (new := new_of(item)) is not item:
            base.__setitem__(value, index, new)


def _dict_children(value: dict[Any, Any]) -> Children:
    for key, item in list(dict.items(value)):
        yield " (a key)", key
        yield _at(key), item


def _write_dict(value: dict[Any, Any], new_of: NewOf) -> None:
    base = OrderedDict if isinstance(value, OrderedDict) else dict
    items = [(key, item, new_of(key), new_of(item)) for key, item in dict.items(value)]
    if any(key is not new_key for key, _, new_key, _ in items):
        base.clear(value)
        items = [(None, None, *new) for _, _, *new in items]
    for _, item, new_key, new in items:
        if new is not item:
            base.__setitem__(value, new_key, new)


def _write_set(value: Any, new_of: NewOf) -> None:
    for item in list(value):
        if (new := new_of(item)) is not item:
            value.discard(item)
            value.add(new)


def _write_weak_dict(value: Any, new_of: NewOf) -> None:
    for key, item in list(value.items()):
        new_key, new = new_of(key), new_of(item)
        if new_key is not key:
            del value[key]
        if new_key is not key or new is not item:
            value[new_key] = new


def _rebuild_tuple(value: Any, new_of: NewOf) -> Any:
    base = tuple if isinstance(value, tuple) else frozenset
    new = base.__new__(type(value), map(new_of, value))
    if hasattr(value, "__dict__"):
        vars(new).update(vars(value))
    return new


def _partial_children(value: Any) -> Children:
    yield ".func", value.func
    yield from ((f".args[{i}]", argument) for i, argument in enumerate(value.args))
    yield from ((f".keywords[{name!r}]", argument) for name, argument in value.keywords.items())


def _rebuild_partial(value: Any, new_of: NewOf) -> Any:
    keywords = {name: new_of(argument) for name, argument in value.keywords.items()}
    new = type(value)(new_of(value.func), *map(new_of, value.args), **keywords)
    vars(new).update(vars(value))
    return new


def _method_children(value: Any) -> Children:
    yield from (("", value.__self__), ("", value.__func__))


def _rebuild_method(value: Any, new_of: NewOf) -> Any:
    owner, function = new_of(value.__self__), value.__func__
    if _is_own_method(value):
        return getattr(owner, function.__name__)
    return types.MethodType(function, owner)


def _is_own_method(value: Any) -> bool:
    function = value.__func__
    return getattr(type(value.__self__), getattr(function, "__name__", ""), None) is function


def can_rebuild(value: Any) -> bool:
    """Return whether an object that can be built anew makes sense with another layer.

    A method of a layer's class may be one that the other's class does not have.
    """
    is_method = isinstance(value, types.MethodType)
    return not (is_method and _is_own_method(value)) or value.__name__ in _COMMON_METHODS


def _weak_child(value: Any) -> Children:
    try:
        is_proxy = isinstance(value, weakref.ProxyTypes)
        yield "()", value.__init__.__self__ if is_proxy else value()
    except ReferenceError:
        return


def _rebuild_weak(value: Any, new_of: NewOf) -> Any:
    if isinstance(value, weakref.WeakMethod):
        return type(value)(_rebuild_method(value(), new_of))
    ((_, child),) = _weak_child(value)
    if isinstance(value, weakref.ProxyTypes):
        return weakref.proxy(new_of(child))
    return type(value)(new_of(child), value.__callback__)


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
        # Names of attributes are among them too.
        read = {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}
        yield from ((f" (global variable '{n}')", v) for n, v in held.items() if n in read)


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
    apart: frozenset[str] | set[str] = frozenset()
    if isinstance(value, nn.Module):
        apart = {
            "_parameters",
            "_buffers",
            *(SPARSE_STATE if isinstance(value, SparseLayer) else ()),
        }
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


def _at(key: Any) -> str:
    return f"[{key!r:.40}]" if is_atom(key) else f"[a {type(key).__name__}]"


def _numbered(value: Any) -> Children:
    return ((f"[{index}]", item) for index, item in enumerate(list(value)))


def _unnumbered(value: Any) -> Children:
    return ((f" (a {type(value).__name__})", item) for item in list(value))


def _weak_items(value: Any) -> Children:
    for key, item in list(value.items()):
        yield " (a key)", key
        yield _at(key), item


def _opaque_children(value: Any) -> Children:
    return ((f" (a {type(value).__name__})", item) for item in gc.get_referents(value))


_OBJECT = Holder(_object_children, _write_object)
_CLASS = Holder(_class_children, _write_class)
_OPAQUE = Holder(_opaque_children)
_WEAK_DICTS = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
_KINDS: tuple[tuple[Any, Holder], ...] = (
    ((list, deque), Holder(_numbered, _write_items)),
    (dict, Holder(_dict_children, _write_dict)),
    (tuple, Holder(_numbered, rebuild=_rebuild_tuple)),
    (frozenset, Holder(_unnumbered, rebuild=_rebuild_tuple)),
    ((set, weakref.WeakSet), Holder(_unnumbered, _write_set)),
    (_WEAK_DICTS, Holder(_weak_items, _write_weak_dict)),
    (types.MappingProxyType, Holder(_weak_items)),
    (functools.partial, Holder(_partial_children, rebuild=_rebuild_partial)),
    (
        types.MethodType,
        Holder(_method_children, rebuild=_rebuild_method),
    ),
    ((weakref.ref, *weakref.ProxyTypes), Holder(_weak_child, rebuild=_rebuild_weak)),
    (types.FunctionType, Holder(_function_children)),
    ((staticmethod, classmethod, property), Holder(_descriptor_children)),
)
