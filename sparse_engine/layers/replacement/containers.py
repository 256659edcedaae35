"""Containers, methods and weak references: what they hold, and how that is exchanged.

A kind of holder yields labels and objects, as a user would write them: `.name`, `[0]`.
"""

import functools
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Children = Iterable[tuple[str, Any]]
NewOf = Callable[[Any], Any]

_ATOMS = frozenset(
    (int, float, complex, str, bytes, bool, type(None), type(...), torch.dtype, torch.device)
)
_OTHER_ATOMS = (Tensor, type, types.ModuleType, types.CodeType, types.FrameType)
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


def _base(value: Any) -> Any:
    """Return the builtin class of a container; a subclass may iterate over something else."""
    return next(base for base in (list, deque, tuple, frozenset) if isinstance(value, base))


def _write_items(value: Any, new_of: NewOf) -> None:
    base = _base(value)
    for index, item in enumerate(list(base.__iter__(value))):
        if (new := new_of(item)) is not item:
            base.__setitem__(value, index, new)


def _dict_children(value: dict[Any, Any]) -> Children:
    for key, item in list(dict.items(value)):
        if type(key) not in _ATOMS:
            yield " (a key)", key
        if type(item) not in _ATOMS:
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
    base = _base(value)
    new = base.__new__(type(value), map(new_of, base.__iter__(value)))
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


def _at(key: Any) -> str:
    return f"[{key!r:.40}]" if is_atom(key) else f"[a {type(key).__name__}]"


def _numbered(value: Any) -> Children:
    items = enumerate(list(_base(value).__iter__(value)))
    return ((f"[{index}]", item) for index, item in items if type(item) not in _ATOMS)


def _array_children(value: Any) -> Children:
    return _numbered(list(value.flat)) if value.dtype.hasobject else ()


def _write_array(value: Any, new_of: NewOf) -> None:
    for index, item in enumerate(list(value.flat)):
        value.flat[index] = new_of(item)


def _unnumbered(value: Any) -> Children:
    return ((f" (a {type(value).__name__})", item) for item in list(value))


def _weak_items(value: Any) -> Children:
    for key, item in list(value.items()):
        yield " (a key)", key
        yield _at(key), item


_WEAK_DICTS = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
CONTAINERS: tuple[tuple[Any, Holder], ...] = (
    ((list, deque), Holder(_numbered, _write_items)),
    (dict, Holder(_dict_children, _write_dict)),
    (tuple, Holder(_numbered, rebuild=_rebuild_tuple)),
    (frozenset, Holder(_unnumbered, rebuild=_rebuild_tuple)),
    ((set, weakref.WeakSet), Holder(_unnumbered, _write_set)),
    (_WEAK_DICTS, Holder(_weak_items, _write_weak_dict)),
    (np.ndarray, Holder(_array_children, _write_array)),
    (types.MappingProxyType, Holder(_weak_items)),
    (functools.partial, Holder(_partial_children, rebuild=_rebuild_partial)),
    (
        types.MethodType,
        Holder(_method_children, rebuild=_rebuild_method),
    ),
    ((weakref.ref, *weakref.ProxyTypes), Holder(_weak_child, rebuild=_rebuild_weak)),
)
