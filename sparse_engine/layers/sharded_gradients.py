"""Gradients under FSDP2: those of sharded values, and the dense ones that belong to them.

FSDP2 computes with whole copies of parameters, adds up their gradients over processes, and gives
the part of this process to the sharded parameter: in a backward pass that synchronises, for all
passes since the last that did. It then calls the parameter's post-accumulate hooks; autograd itself
knows nothing of that parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparse_engine.shards import is_sharded, own_part
from sparse_kernels import BlockLayout
from sparse_kernels.operators.dense_gradient import DenseGradientProbe
from sparse_kernels.operators.dense_gradient_sum import DenseGradientSum
from sparse_kernels.operators.gradient_watch import GradientWatch, Listener
from sparse_kernels.operators.unseen import unseen
from sparse_kernels.transforms import is_transformed


class ShardedGradientWatch(GradientWatch):
    """Tells whether FSDP2 has given a sharded parameter a gradient."""

    def attach(self) -> None:
        """Register the hook, which a frozen parameter cannot have; again does nothing."""
        if not self._handles and self.parameter.requires_grad:
            self._handles = self._hooks_after_landing()

    def land(self, _: Tensor | None = None) -> None:
        """Note that FSDP2 has written to parameter.grad."""
        self._arrived = True
        if (listener := self._listening()) is not None:
            listener.after_landing(not self._is_replaced)
        self._mark()


def watch_of(values: Tensor, listener: Listener | None = None) -> GradientWatch:
    """Return a watch of values, sharded or whole."""
    return (ShardedGradientWatch if is_sharded(values) else GradientWatch)(values, listener)


class ShardedGradientSum(DenseGradientProbe):
    """Holds this process's part of the dense gradient that belongs to the grad of sharded values.

    Their gradient is the mean over processes, and so is the dense one: that of what all hold.
    What is done to `grad` between backward and the optimizer's step (clipping, unscaling) is not
    followed; where it was changed between two passes that synchronise, the gradient is unknown.
    """

    def __init__(
        self,
        layout: BlockLayout,
        values: Tensor,
        memory: float = 1.0,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Watch a layer with `layout` and sharded values; arguments as of DenseGradientProbe."""
        super().__init__(layout, own_part(values), memory, reduce)
        self._values = values
        self._watch = ShardedGradientWatch(values, self)
        self._begin()

    def _begin(self) -> None:
        self._sum: Tensor | None = None
        self._unsent: Tensor | None = None  # of passes that have not given `grad` their part yet
        self._is_unknown = self._has_missed = False

    @property
    def gradient(self) -> Tensor | None:
        """The dense gradient [O, C, R, S] of this process's batches; None if there is none."""
        is_there = self._values.grad is not None
        return self._sum if is_there and not (self._is_unknown or self._has_missed) else None

    @property
    def collected(self) -> Tensor | None:
        """The scores as add_scores(gradient) would make them now, without `reduce`."""
        gradient = self.gradient
        return self.scores if gradient is None else self._added(gradient.float())

    def take(self) -> Tensor | None:
        """Return the gradient and begin anew."""
        gradient = self.gradient
        if gradient is None and self._watch.took_part:
            self.scores = None  # they lack a gradient
        self._begin()
        self._watch.forget()
        return gradient

    def close(self) -> None:
        """Remove the hook of the values."""
        self._watch.close()

    def view(self, values: Tensor) -> Tensor:
        """Return the values that an operator should be given."""
        return unseen(values, self) if is_transformed() else values

    def observe(self, y: Tensor, x: Tensor, values: Tensor, *geometry: Sequence[int]) -> Tensor:
        """Return y, what an operator makes of x and of values that come from view()."""
        return super().observe(y, x, values, *geometry) if self._is_seen(values) else y

    def observe_weight(self, dense: Tensor, values: Tensor) -> Tensor:
        """Return the dense weight [O, C, R, S] of values that come from view()."""
        return super().observe_weight(dense, values) if self._is_seen(values) else dense

    def before_landing(self) -> None:
        """Not called: nobody tells before FSDP2 writes to `grad`."""

    def after_landing(self, is_added: bool) -> None:
        """Called by the watch: what waited belongs to `grad` now, beside what it had if added."""
        unsent, self._unsent = self._unsent, None
        if not is_added or self._sum is None:
            self._sum, self._is_unknown = unsent, False
        elif unsent is not None:
            self._sum.add_(unsent)

    def _receive(self, gradient: Tensor) -> None:
        if self._unsent is None:
            self._look()
            self._unsent = gradient
        else:
            self._unsent.add_(gradient)

    def _look(self) -> None:
        """See before a pass what was done to `grad` in place since the last one, if anything."""
        if self._sum is None or self._values.grad is None or not self._watch.is_touched:
            return
        if own_part(self._values.grad).any():
            self._is_unknown = True
        else:  # zero_grad(set_to_none=False)
            self._sum = None
        self._watch.note()

    def _is_seen(self, values: Tensor) -> bool:
        if not torch.compiler.is_compiling():
            self._watch.attach()
        return values.requires_grad and torch.is_grad_enabled()


def probe_kind(values: Tensor, accumulate: bool) -> type[DenseGradientProbe]:
    """Return what collects dense gradients of values; `accumulate` as of SparseLayer.collect."""
    if is_sharded(values):
        return ShardedGradientSum
    return DenseGradientSum if accumulate else DenseGradientProbe
