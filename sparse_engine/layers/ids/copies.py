"""Copies of a layer that copy.deepcopy has made, and what may have become of them."""

from __future__ import annotations

import copy
import weakref
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from sparse_engine.shards import own_part


class Copied(nn.Module):
    """A module with `values` that knows its copies, and of a copy, what it was copied from."""

    copies: weakref.WeakSet[Copied] | None = None
    """Copies of this layer that copy.deepcopy has made and that are still alive."""
    origin: weakref.ref[Copied] | None = None
    """Of a copy: the layer that it was made from."""
    _first: tuple[int, float] | None = None  # of a copy: what tells that its values have changed

    @property
    def has_changed(self) -> bool:
        """Whether a copy's values have been written to since it was made; waits for no GPU."""
        return self._first is not None and self._first != self._fingerprint()

    def _fingerprint(self) -> tuple[int, float]:
        values = self._parameters["values"]
        assert values is not None
        # Writes through `.data` leave the version as it was.
        has_numbers = not (values.is_cuda or values.is_meta)
        return version(values), float(
            own_part(values).detach().double().sum()
        ) if has_numbers else 0.0

    def __getstate__(self) -> dict[str, Any]:
        apart = ("copies", "origin", "_first")
        return {name: value for name, value in self.__dict__.items() if name not in apart}

    def __deepcopy__(self, memo: dict[int, Any]) -> Copied:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        # A layer with a parametrized bias cannot be pickled, but copied.
        state = type_before_parametrizations(self).__getstate__(self)
        twin.__setstate__(copy.deepcopy(state, memo))
        twin.origin, twin._first = weakref.ref(self), twin._fingerprint()
        if self.copies is None:
            self.copies = weakref.WeakSet()
        self.copies.add(twin)
        return twin


def version(tensor: Tensor) -> int:
    """Return how often a tensor was written to, as PyTorch counts; 0 where it does not."""
    return 0 if tensor.is_inference() else tensor._version
