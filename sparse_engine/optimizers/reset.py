"""State of exchanged slots becomes what an optimizer has of weights it has just met."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from sparse_engine.errors import InputError
from sparse_engine.optimizers.fresh_state import fresh_state
from sparse_engine.optimizers.wrappers import (
    Path,
    kept_aside,
    own_state,
    tensors_in,
    with_wrapped,
)
from sparse_engine.shards import is_sharded, own_part, own_rows


@torch.no_grad()
def reset_slots(
    optimizer: Any, parameter: Parameter, slots: Tensor, unless: Tensor | None = None
) -> None:
    """Give some slots of values [Z, BC, BO] the state of blocks that an optimizer has just met.

    What is per slot becomes the optimizer's own initial value (fresh_state), in optimizers inside
    it too; counters of steps stay, and so does what is per row or column of all blocks together.
    A matrix over pairs of slots (a preconditioner such as kron's Q) gets the initial rows and
    columns of these slots. State that says nothing of its slots (an 8-bit format's scale for parts
    of several blocks, factors of the weight laid out in another way) is left as it is.
    Where an optimizer cannot be asked, what has Z as its first dimension becomes zero. Nothing is
    waited for.

    Args:
        optimizer: an Optimizer, a wrapper of one, or anything with a `state` by parameter.
        parameter: the values, of which the slots have become zero.
        slots: their numbers.
        unless: a bool on the device [], where True nothing changes; None is False.
    """
    if not slots.numel():
        return
    done: dict[int, Tensor] = {}
    write = partial(_write_part, parameter) if is_sharded(parameter) else _write
    # The innermost first: they know what their own state begins with.
    for one in reversed(with_wrapped(optimizer)):
        own = [(path, s) for path, s in tensors_in(own_state(one, parameter)) if s.ndim]
        fresh = fresh_state(one, parameter) if own else None
        for path, state in own:
            if id(state) not in done:
                done[id(state)] = state
                shape = _whole_shape(parameter, state)
                initial = _initial(fresh, parameter, path, shape) or _zero(parameter, shape)
                write(state, initial, slots, unless)
        for state in kept_aside(one, parameter):
            if id(state) not in done:
                done[id(state)] = state
                write(state, _zero(parameter, _whole_shape(parameter, state)), slots, unless)


class _Initial(NamedTuple):
    """What a tensor of state begins with."""

    value: Tensor
    widths: tuple[int, ...]  # by dimension: entries a slot, 0 where a dimension is of no slots


def _whole_shape(parameter: Parameter, state: Tensor) -> torch.Size:
    """Return the shape of a tensor of state; of a part like that of a sharded parameter, of all."""
    is_part = is_sharded(parameter) and state.shape == own_part(parameter).shape
    return parameter.shape if is_part else state.shape


def _zero(parameter: Parameter, shape: torch.Size) -> _Initial:
    """Return zero for every slot, if the first dimension is the slots."""
    is_per_slot, more = bool(shape) and shape[0] == len(parameter), len(shape) - 1
    return _Initial(torch.zeros([1] * len(shape)), (int(is_per_slot),) + (0,) * more)


def _initial(fresh: Any, parameter: Parameter, path: Path, shape: torch.Size) -> _Initial | None:
    """Return what a tensor of state begins with by fresh_state; None if that cannot be told."""
    is_known = False
    for sizes in _sizes(parameter):
        # Few slots may have another form of state than many; all are tried where that was seen.
        if sizes[0] > 1 + max(_MANY, *parameter.shape[1:]) and not is_known:
            break
        few, more = (fresh(n).get(path) for n in sizes)
        is_known |= few is not None
        if few is not None and more is not None:
            widths = _widths(few, more, shape, (*sizes, len(parameter)))
            if widths is not None:
                return _Initial(few, widths)
    return None


_MANY = 128  # above the limits from which optimizers keep factors of a state


def _sizes(parameter: Parameter) -> Iterator[tuple[int, int]]:
    """Yield pairs of numbers of slots: in what is per slot, lengths differ as they do."""
    yield 2, 3
    slots, block = len(parameter), parameter.shape[1:]
    many = min(slots, 1 + max(_MANY, *block))
    # Some factor the two longest dimensions: the first of equal ones counts as shorter.
    steps = (-1, 1) if many in block else (1, -1)
    yield from ((many, many + step) for step in steps if many + step > 0)
    if many < slots:
        yield slots, slots + 1


def _widths(few: Tensor, more: Tensor, shape: torch.Size, slots: tuple[int, ...]) -> Any:
    """Return entries a slot by dimension, from three numbers of slots; None if they disagree."""
    if not few.ndim == more.ndim == len(shape):
        return None
    widths = []
    for lengths in zip(few.shape, more.shape, shape):
        width = lengths[0] // slots[0]
        if len(set(lengths)) == 1:
            widths.append(0)
        elif all(length == width * n for length, n in zip(lengths, slots)):
            widths.append(width)
        else:
            return None
    return tuple(widths)


def _write(state: Tensor, initial: _Initial, slots: Tensor, unless: Tensor | None) -> None:
    """Set some slots of a tensor of state to its initial value, in place."""
    places = [d for d, width in enumerate(initial.widths) if width]
    if state.is_floating_point() and state.element_size() == 1:
        # Of 8-bit floats no number can be written, but their bytes can.
        value = initial.value.to(state.dtype).view(torch.uint8)
        state, initial = state.view(torch.uint8), initial._replace(value=value)
    if len(places) == 1:
        _write_rows(state, places[0], initial, slots, unless)
    elif len(places) == 2 and initial.widths == (1, 1):
        _write_pairs(state, initial.value, slots, unless)


def _write_part(
    parameter: Parameter, state: Tensor, initial: _Initial, slots: Tensor, unless: Tensor | None
) -> None:
    """Do what _write does where FSDP2 has cut up the parameter, in the part of this process."""
    if not any(initial.widths):
        return
    if initial.widths[0] != 1 or any(initial.widths[1:]):
        raise InputError(
            "an optimizer keeps several numbers for each pair of slots of values that are cut up "
            "among processes (FSDP2): give them to another, such as torch.optim.AdamW"
        )
    rows = own_part(state)
    held = own_rows(state if is_sharded(state) or len(rows) == len(parameter) else parameter)
    changed = torch.zeros(len(parameter), dtype=torch.bool, device=rows.device)
    changed = changed.index_fill_(0, slots, True)[held]
    if unless is not None:
        changed &= ~unless
    value = initial.value[:1].to(rows.device, rows.dtype, non_blocking=True)
    rows.copy_(torch.where(changed.view(-1, *[1] * (rows.ndim - 1)), value, rows))


def _write_rows(
    state: Tensor, place: int, initial: _Initial, slots: Tensor, unless: Tensor | None
) -> None:
    parts = (-1, initial.widths[place])
    rows = state.unflatten(place, parts)
    value = initial.value.unflatten(place, parts).narrow(place, 0, 1)
    number = _number(value)
    if unless is None and number is not None:
        rows.index_fill_(place, slots, number)
        return
    old = rows.index_select(place, slots)
    if number is not None:
        new = torch.full_like(old, number)
    else:
        new = value.to(old.device, old.dtype, non_blocking=True).expand_as(old)
    rows.index_copy_(place, slots, new if unless is None else torch.where(unless, old, new))


def _number(value: Tensor) -> complex | None:
    """Return the number that all of a tensor is; None if there are several, or on a device."""
    if value.device.type != "cpu" or not value.numel():
        return None
    first = value.flatten()[0]
    return first.item() if bool((value == first).all()) else None


def _write_pairs(state: Tensor, value: Tensor, slots: Tensor, unless: Tensor | None) -> None:
    """Give a matrix [Z, Z] the initial rows and columns of some slots, on and off the diagonal."""
    value = value.to(state.device, state.dtype, non_blocking=True)
    changed = torch.zeros(len(state), dtype=torch.bool, device=state.device)
    changed.index_fill_(0, slots, True)
    if unless is not None:
        changed &= ~unless
    new = torch.where(changed[:, None] | changed, value[0, -1], state)
    new.diagonal().copy_(torch.where(changed, value[0, 0], new.diagonal()))
    state.copy_(new)
