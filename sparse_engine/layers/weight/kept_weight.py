"""A layer's weight is made of its blocks: nobody may put another in its place."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from sparse_engine.errors import InputError
from sparse_engine.layers.weight.weight_writes import LayerWeight

_ASSIGNED = (
    "is made from its blocks and cannot be assigned; change .values, write to .weight in place, "
    "or load a state dict"
)


class _Parameters(dict[str, Any]):
    """The parameters of a layer, for code that takes `weight` or `values` out by itself."""

    __slots__ = ()

    def __missing__(self, name: str) -> Any:
        if name == "weight":
            raise _refusal(name)
        raise KeyError(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise _refusal(name)
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        if name in ("weight", "values"):
            raise _refusal(name)
        super().__delitem__(name)


class KeptWeight(nn.Module):
    """A module with a `weight` made of blocks, which nobody may put another in the place of.

    A tool that does (weight_norm, prune, ...) would hide the layer's values from topology updates.
    """

    layout: Any
    values: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["_parameters"] = _Parameters(self._parameters)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_parameters"] = _Parameters(self._parameters)

    @property
    def parametrizations(self) -> nn.ModuleDict:
        """What torch.nn.utils.parametrize keeps of a bias; it is refused elsewhere."""
        asks, caller = sys._getframe(1), sys._getframe(2)
        if caller.f_code is parametrize.register_parametrization.__code__:
            name = asks.f_locals.get("tensor_name")
            if name in ("weight", "values"):
                raise _refusal(name)
        raise AttributeError("parametrizations")  # nn.Module looks among its modules

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, but none that stands for the weight or the values.

        Raises:
            InputError: it does, as those of prune, weight_norm and spectral_norm do.
        """
        if name == "weight":
            raise _refusal(name)
        stem, _, role = name.rpartition("_")
        if stem in ("weight", "values") and role in ("orig", "g", "v"):
            if "values" not in self._parameters:  # spectral_norm has taken them out before
                rest = dict(self._parameters)
                self._parameters.clear()
                self._parameters.update({"values": param, **rest})
            raise _refusal(stem)
        super().register_parameter(name, param)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            # `layer.weight += 1` ends so, after it has written.
            if type(value) is LayerWeight and value.can_replace(self):
                return value._write()
            raise AttributeError(f"{type(self).__name__}.weight {_ASSIGNED}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name == "weight":
            raise AttributeError(f"{type(self).__name__}.weight {_ASSIGNED}")
        if name in self._parameters:  # FSDP takes the values out, and puts them back
            self._parameters.pop(name)
        else:
            super().__delattr__(name)


def _refusal(name: str) -> InputError:
    return InputError(
        f"the {name} of a sparse layer cannot be replaced or computed from other parameters "
        "(weight_norm, spectral_norm, prune, parametrize): apply such a tool before sparsify, and "
        "the layer stays dense, or write to the weight in place"
    )
