"""What other code writes to a layer's weight in place: the layer's blocks take it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, is_in_torch_dispatch_mode

from sparse_engine.layers.unrecorded import is_traced
from sparse_kernels import BlockLayout
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks

IN_GRAD_MODE = (
    "a sparse layer's weight is being written in place where gradients are recorded: write to it "
    "under torch.no_grad(), as to a parameter"
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


class Layer(Protocol):
    """What has a weight made of blocks."""

    values: nn.Parameter

    @property
    def layout(self) -> BlockLayout:
        """Where the blocks lie."""
        ...

    def to_weight(self, dense: Tensor) -> Tensor:
        """Return [O, C, R, S] in the shape of the weight."""
        ...

    def from_weight(self, weight: Tensor) -> Tensor:
        """Return the weight as [O, C, R, S]."""
        ...


class LayerWeight(Tensor):
    """A layer's dense weight, or a view of it: what is written to it in place, the layer takes.

    Outside of active blocks it is zero again afterwards. Results of functions are plain tensors,
    but for views. It has the numbers of when it was read; a write reads the present ones first.
    """

    _layer: Layer
    _whole: Tensor  # the numbers of the whole weight; this is a view of them

    @classmethod
    def of(cls, layer: Layer, part: Tensor, whole: Tensor) -> LayerWeight:
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
            self._whole.copy_(layer.to_weight(dense))

    def _write(self) -> None:
        """Give the layer the numbers in its blocks."""
        layer, layout = self._layer, self._layer.layout
        with torch.no_grad():
            dense = layer.from_weight(self._whole)
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


def open_weight(dense: Tensor, layer: Layer) -> Tensor:
    """Return a layer's dense weight as one that can be written to; as it is on the meta device."""
    if type(dense) is not Tensor or dense.is_meta:
        return dense
    dense = dense.contiguous()
    return LayerWeight.of(layer, dense, dense.detach())


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
