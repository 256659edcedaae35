"""What other code does to a layer's weight: writes go to its blocks, putting another is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _disable_current_modes, is_in_torch_dispatch_mode

from sparse_engine.errors import InputError
from sparse_engine.layers.unrecorded import is_traced
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks

IN_GRAD_MODE = (
    "a sparse layer's weight is being written in place where gradients are recorded: write to it "
    "under torch.no_grad(), as to a parameter"
)
_ASSIGNED = (
    "is made from its blocks and cannot be assigned; change .values, write to .weight in place, "
    "or load a state dict"
)
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_GET_BASE = Tensor._base.__get__  # type: ignore[attr-defined]
_OPERATORS = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}
_WRITING = {"__setitem__", "__idiv__", *_OPERATORS}
# Their names end as those of functions that write numbers.
_NOT_WRITING = {"requires_grad_", "share_memory_", "detach_", "rename_"}
_RESHAPING = {
    *("t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "as_strided_"),
    *("resize_", "resize_as_", "set_"),
}


class LayerWeight(Tensor):
    """A layer's dense weight, or a view of it: what is written to it in place, the layer takes.

    Outside of active blocks it is zero again afterwards. Results of functions are plain tensors,
    but for views. It has the numbers of when it was read; a write reads the present ones first.
    """

    _layer: WritableWeight
    _whole: Tensor  # the numbers of the whole weight; this is a view of them

    @classmethod
    def of(cls, layer: WritableWeight, part: Tensor, whole: Tensor) -> LayerWeight:
        """Return a part of a layer's dense weight as a tensor that can be written to."""
        weight = part.as_subclass(cls)
        weight._layer, weight._whole = layer, whole
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function; whatever it has written to, and however, the layers take over.

        Raises:
            RuntimeError: it writes while gradients are recorded, or changes a shape in place.
        """
        kwargs = kwargs or {}
        if not all(issubclass(cls, kind) for kind in types):
            return NotImplemented
        with torch._C.DisableTorchFunctionSubclass():
            if torch.compiler.is_compiling() or func == _GET_BASE:
                return func(*args, **kwargs)
            if func == _SET_DATA:
                return _set_data(*args)
            weights = list(_weights_in((args, kwargs)))
            targets = _targets(getattr(func, "__name__", ""), args, kwargs)
            # Initialisers write without gradients.
            is_initialiser = getattr(func, "__module__", None) == nn.init.__name__
            is_recorded = torch.is_grad_enabled() and not is_initialiser
            _check(targets, is_recorded)
            for weight in targets:
                weight._read()
            before = [weight._version for weight in weights]
            if is_in_torch_dispatch_mode():  # whoever sees operators may know plain tensors only
                args, kwargs = _plain(args), _plain(kwargs)
            result = func(*args, **kwargs)
            written = [w for w, version in zip(weights, before) if w._version != version]
            # Those that nobody could tell before.
            _check([w for w in written if not any(w is t for t in targets)], is_recorded)
            for weight in [*targets, *written]:
                weight._write()
            return _views(result, weights)

    def _read(self) -> None:
        """Follow the layer's present numbers; zero outside its blocks."""
        layer, layout = self._layer, self._layer.layout
        with torch.no_grad():
            dense = scatter_blocks(layer.values, layout.tensors(), layout.sizes())
            self._whole.copy_(dense.reshape(self._whole.shape))

    def _write(self) -> None:
        """Give the layer the numbers in its blocks."""
        layer, layout = self._layer, self._layer.layout
        with torch.no_grad():
            dense = self._whole.reshape(layout.shape)
            layer.values.copy_(gather_blocks(dense, layout.tensors(), layout.sizes()))
        self._read()

    def can_replace(self, layer: nn.Module) -> bool:
        """Return whether this is a layer's whole weight, and may be written to."""
        is_whole = self._layer is layer and self.shape == self._whole.shape
        return is_whole and not (torch.is_grad_enabled() and self.requires_grad)

    def plain(self) -> Tensor:
        """Return it as an ordinary tensor, which shares its memory."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.unbind(0))

    def __repr__(self, **kwargs: Any) -> str:
        return self.plain().__repr__(**kwargs)

    def __format__(self, spec: str) -> str:
        return format(self.plain(), spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.plain().__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain().__reduce_ex__(protocol)


def open_weight(dense: Tensor, layer: WritableWeight) -> Tensor:
    """Return a layer's dense weight as one that can be written to; as it is on the meta device."""
    if type(dense) is not Tensor or dense.is_meta:
        return dense
    dense = dense.contiguous()
    return LayerWeight.of(layer, dense, dense.detach())


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


class WritableWeight(nn.Module):
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


def _weights_in(value: Any) -> Iterator[LayerWeight]:
    """Yield the weights among a function's arguments."""
    if isinstance(value, LayerWeight):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _weights_in(item)
    elif isinstance(value, dict):
        yield from _weights_in(list(value.values()))


def _plain(value: Any) -> Any:
    """Return a function's arguments with ordinary tensors in place of weights."""
    if isinstance(value, LayerWeight):
        with _disable_current_modes():
            return value.plain()
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return value


def _targets(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[LayerWeight]:
    """Return the weights that a function of this name writes to."""
    found = list(_weights_in(kwargs.get("out")))
    name = name.partition(".")[0]  # of an operator's overload
    is_writing = name.endswith("_") and not name.endswith("__") and name not in _NOT_WRITING
    if is_writing or name in _WRITING or kwargs.get("inplace"):
        first = args[0] if args else kwargs.get("self", kwargs.get("input", kwargs.get("tensor")))
        found += _weights_in(first)
    if found and name in _RESHAPING:
        raise RuntimeError(f"a sparse layer's weight keeps its shape: {name} is refused")
    return found


def _check(written: list[LayerWeight], is_recorded: bool) -> None:
    if is_recorded and any(weight.requires_grad for weight in written):
        for weight in written:
            weight._read()
        raise RuntimeError(IN_GRAD_MODE)


def _views(result: Any, weights: list[LayerWeight]) -> Any:
    """Return a function's result, with views of weights as such."""
    if type(result) in (list, tuple):
        return type(result)(_views(item, weights) for item in result)
    if type(result) is Tensor and result.layout is torch.strided and not is_traced():
        for weight in weights:
            whole = weight._whole
            if result.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr():
                return LayerWeight.of(weight._layer, result, whole)
    return result


def _set_data(weight: LayerWeight, data: Tensor) -> None:
    """Write what is assigned to `.data`, which a parameter would have from then on.

    Raises:
        RuntimeError: it is no tensor of the same kind.
    """
    if (data.shape, data.dtype, data.device) != (weight.shape, weight.dtype, weight.device):
        raise RuntimeError(
            "the data of a sparse layer's weight stay "
            f"{weight.dtype} {list(weight.shape)} on {weight.device}, found "
            f"{data.dtype} {list(data.shape)} on {data.device}"
        )
    numbers = data.detach().clone()
    weight._read()
    weight.detach().copy_(numbers)
    weight._write()


def _refusal(name: str) -> InputError:
    return InputError(
        f"the {name} of a sparse layer cannot be replaced or computed from other parameters "
        "(weight_norm, spectral_norm, prune, parametrize): apply such a tool before sparsify, and "
        "the layer stays dense, or write to the weight in place"
    )
