"""The dense gradient that the optimizer sees: summed over backward passes as `values.grad` is.

Passes add up, `zero_grad` throws away what came before it, and gradients that torch.autograd.grad
returns count when they are written to `values.grad`. Every pass therefore ends in one of two
places: with its gradient of `values` added to `values.grad`, then its dense gradient is added to
the sum; or with it returned to the caller, then its dense gradient waits until `values.grad` tells
how much of it counts (`gradient_match`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparse_kernels.layout import BlockLayout
from sparse_kernels.operators import reference
from sparse_kernels.operators.dense_gradient import DenseGradientProbe
from sparse_kernels.operators.gradient_match import matching
from sparse_kernels.operators.gradient_watch import NO_PASS, GradientWatch, current_pass
from sparse_kernels.operators.observation import Observation, observe, observe_weight
from sparse_kernels.operators.unseen import unseen
from sparse_kernels.transforms import is_transformed

MOST_WAITING = 3  # dense gradients of passes; with one more, the earliest two become their sum


class DenseGradientSum(DenseGradientProbe):
    """Holds the gradient that the `grad` of a dense weight would have in a loop of any kind."""

    def __init__(
        self,
        layout: BlockLayout,
        values: Tensor,
        memory: float = 1.0,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Watch a layer with `layout` and these values; arguments as of DenseGradientProbe.

        Scores come when add_scores() is called, not in backward.
        """
        super().__init__(layout, values, memory, reduce)
        self._values = values
        self._watch = GradientWatch(values, self)
        self._taken_in = NO_PASS
        self._begin()

    def _begin(self) -> None:
        self._sum: Tensor | None = None
        # By pass: those that have reached the leaf, and those that nothing but `receive` has seen.
        self._landing: dict[int, Tensor] = {}
        self._returned: dict[int, Tensor] = {}
        self._landed_in, self._landed_plainly = NO_PASS, True
        self._missed: set[int] = set()  # passes with a part that was not observed
        self._is_unknown = False

    @property
    def gradient(self) -> Tensor | None:
        """The dense gradient [O, C, R, S] that belongs to values.grad as it is now, or None.

        It is the sum itself, to which later passes add in place. None, too, where values.grad has
        a part that was not observed.
        """
        if self._watch.is_landing:  # asked by a hook of the values, before ours
            self._watch.land()
        else:
            self._look()
        return None if self._is_unknown else self._sum

    @property
    def took_part(self) -> bool:
        """Whether a gradient of the values has arrived since the beginning, or since take()."""
        return self._watch.took_part

    @property
    def collected(self) -> Tensor | None:
        """The scores as add_scores(gradient) would make them now, without `reduce`."""
        gradient = self.gradient
        return self.scores if gradient is None else self._added(gradient.float())

    def take(self) -> Tensor | None:
        """Return the gradient and begin anew: whatever happens to values.grad later."""
        gradient = self.gradient
        if gradient is None and self._watch.took_part:
            self.scores = None  # they lack a gradient
        self._begin()
        self._taken_in = current_pass()
        self._watch.forget()
        return gradient

    def close(self) -> None:
        """Remove the hooks of the values."""
        self._watch.close()

    def view(self, values: Tensor) -> Tensor:
        """Return a view, whose node tells whether a pass goes through to the values."""
        if is_transformed():
            return unseen(values, self)
        return values if torch.compiler.is_compiling() else values.view_as(values)

    def observe(self, y: Tensor, x: Tensor, values: Tensor, *geometry: Sequence[int]) -> Tensor:
        """Return y, what an operator makes of x and of values that come from view()."""
        if is_transformed() or not self._is_seen(values):
            return y
        if torch.compiler.is_compiling():
            return super().observe(y, x, values, *geometry)
        return observe(y, x, values, self.leaf, Observation.of(self, geometry))

    def observe_weight(self, dense: Tensor, values: Tensor) -> Tensor:
        """Return the dense weight [O, C, R, S] of values that come from view()."""
        if is_transformed() or not self._is_seen(values):
            return dense
        if torch.compiler.is_compiling():
            return super().observe_weight(dense, values)
        return observe_weight(dense, values, self.leaf, Observation.of(self, ()))

    def receive(self, gradient: Tensor) -> None:
        """Take a dense gradient of a pass that does not reach the leaf."""
        self._put(self._returned, gradient)

    def miss(self) -> None:
        """Note that the pass that runs, or what others will write, is not known in full."""
        self._missed.add(current_pass())

    def before_landing(self) -> None:
        """Called by the watch."""
        self._look()

    def after_landing(self, is_plain: bool) -> None:
        """Called by the watch: what the pass has brought belongs to values.grad."""
        self._landed_in, self._landed_plainly = current_pass(), is_plain
        self._is_unknown |= self._landed_in in self._missed
        self._missed.discard(self._landed_in)
        self._settle(self._popped(lambda number: number == self._landed_in))
        # Nobody has written them to values.grad until now, or they would have been matched.
        self._returned.clear()

    def _settle(self, gradients: list[Tensor]) -> None:
        """Add what the pass that runs has added to values.grad."""
        if not self._landed_plainly:
            self._match(gradients)
            return
        for gradient in [] if self._is_unknown else gradients:
            self._sum = gradient if self._sum is None else self._sum.add_(gradient)

    def _is_seen(self, values: Tensor) -> bool:
        if not torch.compiler.is_compiling():
            self._watch.attach()
        return values.requires_grad and torch.is_grad_enabled()

    def _receive(self, gradient: Tensor) -> None:
        # Of a compiled layer the values may be first, and be taken.
        if self._landed_in == current_pass():
            self._settle([gradient.detach()])
        elif self._taken_in != current_pass():
            self._put(self._landing, gradient.detach())

    def _put(self, arrived: dict[int, Tensor], gradient: Tensor) -> None:
        number = current_pass()
        if number in arrived:
            arrived[number].add_(gradient)
            return
        self._look()
        arrived[number] = gradient
        if len(arrived) > MOST_WAITING:
            earliest, next_one, *_ = arrived
            arrived[next_one].add_(arrived.pop(earliest))

    def _look(self) -> None:
        """Bring the sum to what others have made of values.grad since the last look."""
        target = self._values.grad
        if target is None:
            self._sum, self._is_unknown = None, False
        elif self._watch.is_touched:
            self._match(self._popped(lambda number: number != current_pass()))
        self._watch.note()

    def _popped(self, is_chosen: Callable[[int], bool]) -> list[Tensor]:
        """Return the waiting dense gradients of some passes, which wait no more."""
        return [
            arrived.pop(number)
            for arrived in (self._landing, self._returned)
            for number in list(arrived)
            if is_chosen(number)
        ]

    def _match(self, gradients: list[Tensor]) -> None:
        """Make of the sum and of others what is in values.grad."""
        known = gradients if self._sum is None else [self._sum, *gradients]
        target, self._sum = self._values.grad, None
        self._is_unknown |= bool(self._missed)
        if not self._is_unknown and known and target is not None:
            self._sum = matching(target, known, self._restricted)

    @torch.no_grad()
    def _restricted(self, dense: Tensor) -> Tensor:
        return reference.gather_blocks(dense, self.layout.tensors(), self.layout.sizes())
