"""What the optimizers' steps have seen of each layer, in a user's own loop.

The gradient that counts is that of the optimizer's step. It is taken when an optimizer has stepped,
so that a later zero_grad changes nothing, and passes that zero_grad threw away before count for
nothing. Where topology updates come before the optimizer's step, the gradient that is there counts;
which of both a loop does is seen in its first steps. A step that torch.amp.GradScaler leaves out
takes no gradient: then nothing is updated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.sharded_gradients import watch_of
from sparse_engine.optimizers.owners import Owners
from sparse_engine.sparsity.processes import Processes, ProcessesOfGroup
from sparse_engine.sparsity.sharded import check_known
from sparse_kernels.operators.gradient_watch import GradientWatch


class Seen(NamedTuple):
    """What a step has seen of a layer that took part in it.

    gradient: the dense one, [O, C, R, S]; None where no rule asks for it.
    left_out: bool, on the device: whether the step was left out there, by a fused optimizer under
        GradScaler; None if it was not.
    """

    gradient: Tensor | None
    left_out: Tensor | None


class StepGradients:
    """Watches the layers that a loop trains, from arm() until read()."""

    def __init__(self, layers: Mapping[str, SparseLayer], owners: Owners) -> None:
        """Watch layers by name; owners tells of every step of the optimizers that hold them."""
        self._layers, self._owners = layers, owners
        self._watches: dict[str, GradientWatch] = {}
        self._seen: dict[str, Seen] = {}
        # Whether optimizers step before topology is updated; None until it is known.
        self._steps_first: bool | None = None
        self._has_stepped = self._is_pending = False
        self._early: dict[str, GradientWatch] = {}
        self._counted_early = 0
        self._watch_early()
        owners.on_step = self._on_step

    def arm(self) -> None:
        """Watch what takes part in the coming step; layers that collect gradients do so anyway."""
        self._seen = {}
        self._watches = {n: watch_of(self._layers[n].values) for n in self._owners.trained()}

    @property
    def is_armed(self) -> bool:
        """Whether the coming step is watched."""
        return bool(self._watches)

    def disarm(self) -> None:
        """Stop watching."""
        for watch in self._watches.values():
            watch.close()
        self._watches, self._seen = {}, {}

    def read(self) -> dict[str, Seen]:
        """Return what is seen of each layer that took part in the step, and disarm."""
        found = dict(self._seen)
        if self._steps_first is not True:
            for name, watch in self._watches.items():
                if name not in found and watch.took_part:
                    found[name] = Seen(self._take(name), None)
            found = _all_or_none(found)
        for name in self._watches:
            self._take(name)  # what other passes have left since the step is nobody's
        self.disarm()
        return {name: _unless_zero(seen) for name, seen in found.items()}

    def pass_by(self) -> int | None:
        """Note that the loop has come to where topology is updated; return how many steps to count.

        None without a step since the last time. While the order is not known each time counts one;
        where it turns out that these times were without a step, they are taken back.
        """
        if self._steps_first and not self._has_stepped:
            return None
        self._has_stepped, count = False, 1
        if self._steps_first is None:
            self._counted_early += 1
            self._is_pending = any(watch.took_part for watch in self._early.values())
            self._watch_early()
        else:
            count -= self._counted_early if self._steps_first else 0
            self._counted_early = 0
        return count

    def _watch_early(self) -> None:
        """Watch, until the order is known, what happens until the next step or update."""
        for name in self._owners.trained() - self._early.keys():
            self._early[name] = watch_of(self._layers[name].values)
        for watch in self._early.values():
            watch.forget()

    def _on_step(self, optimizer: Optimizer) -> None:
        """Take the gradients of the layers that an optimizer holds, which has just stepped."""
        if self.is_armed:
            check_known(self._layers, self._owners.parameters)
        self._has_stepped = True
        self._learn_order()
        held = self._owners.names_in(optimizer) if self._watches else ()
        for name in held:
            watch = self._watches.get(name)
            if watch is not None and watch.took_part:
                found = getattr(optimizer, "found_inf", None)
                left_out = None if found is None else found.reshape(()) > 0
                self._seen[name] = Seen(self._take(name), left_out)
                watch.forget()

    def _take(self, name: str) -> Tensor | None:
        return self._layers[name].take_gradient()

    def _learn_order(self) -> None:
        """See at a step whether its gradient came since topology was last updated, or before."""
        if self._steps_first is None:
            if any(watch.took_part for watch in self._early.values()):
                self._steps_first = True
            elif self._is_pending:
                self._steps_first = False
            self._is_pending = False
            if self._steps_first is not None:
                for watch in self._early.values():
                    watch.close()
                self._early = {}


def _unless_zero(seen: Seen) -> Seen:
    """Say that nothing was seen if it is all zeros: a pass that zero_grad threw away was the last.

    That is known on the device alone.
    """
    if seen.gradient is None:
        return seen
    nothing = ~seen.gradient.any()
    return seen._replace(left_out=nothing if seen.left_out is None else seen.left_out | nothing)


def _all_or_none(found: dict[str, Seen]) -> dict[str, Seen]:
    """Say of all layers that the step is left out if a gradient of any is not finite.

    GradScaler, whose step is still to come, will leave it out.
    """
    gradients = [seen.gradient for seen in found.values() if seen.gradient is not None]
    if not gradients:
        return found
    finite = torch.stack([g.abs().amax().isfinite() for g in gradients]).all()
    return {name: seen._replace(left_out=~finite) for name, seen in found.items()}


def averaged(
    found: Mapping[str, Seen], layers: Mapping[str, SparseLayer], processes: Processes
) -> dict[str, Seen]:
    """Return what all processes together have seen: means of gradients, of all layers in order.

    Args:
        found: by this process.
        layers: that the processes train, the same in all.
        processes: a single one has nothing to average.
    """
    if not isinstance(processes, ProcessesOfGroup) or not layers:
        return dict(found)
    device = next(iter(layers.values())).values.device
    # Made on the device: a number of the host would be a copy.
    took_part = torch.stack([torch.full((), name in found, device=device) for name in layers])
    left_out = torch.stack([_flag(found.get(n), layer, device) for n, layer in layers.items()])
    took_part, left_out = processes.sum_(torch.stack([took_part.float(), left_out])) > 0
    averages = {}
    for number, (name, layer) in enumerate(layers.items()):
        own = found.get(name)
        gradient = None if own is None else own.gradient
        if layer.is_collecting:
            if gradient is None:
                shape, dtype = layer.layout.shape, layer.values.dtype
                gradient = torch.zeros(shape, dtype=dtype, device=layer.layout.device)
            gradient = processes.mean(gradient)
        averages[name] = Seen(gradient, left_out[number] | ~took_part[number])
    return averages


def _flag(seen: Seen | None, layer: SparseLayer, device: torch.device) -> Tensor:
    """Return 1 if a step was left out, or its gradient is not known, in this process."""
    if seen is not None and seen.gradient is None and layer.is_collecting:
        return torch.ones((), device=device)
    left_out = None if seen is None else seen.left_out
    return torch.zeros((), device=device) if left_out is None else left_out.float().to(device)
