"""Tensors of a CUDA device that is not there, and a tape of the operators that they pass.

They are PyTorch's own fake tensors: shape, strides, type and device, and no numbers. To C++ they
lie on the meta device, so that autograd asks no driver for a stream; to Python on "cuda".
Operators of the project run their kernels' launchers on them; every other one runs PyTorch's
description of it.
"""

from __future__ import annotations

import collections
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before Tensor._make_subclass is replaced, which it looks at
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[3]
NAMESPACE = "sparse_kernels"
CUDA, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
# Operators of a CUDA device that make the host wait for it.
WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique2"}
# What runs no kernel: room for results, and numbers of the host.
WITHOUT_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias"),
    *("_unsafe_view", "_local_scalar_dense", "lift_fresh", "scalar_tensor", "set_", "resize_"),
    *("_assert_async", "is_same_size", "_reshape_alias", "split", "split_with_sizes", "unbind"),
}

# What autocast runs in the lower type, and what in float32.
LOWERED = {
    *(F.conv2d, F.linear, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.mm),
    *(torch.addmm, torch.baddbmm, torch.einsum, torch.conv2d, Tensor.matmul, Tensor.__matmul__),
}
WIDENED = {F.cross_entropy, F.nll_loss, F.layer_norm, F.softmax, F.log_softmax, torch.softmax}
WITHOUT_DEVICE = {Tensor.device.__get__, Tensor.shape.__get__, Tensor.requires_grad.__get__}


class _Asked:
    """Whether somebody asks for the meta device by name, or has tensors there."""

    for_meta = 0


def _placed(kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return keywords; what C++ makes for a tensor that it takes for a meta one is on `device`."""
    if _Asked.for_meta or _wanted_device(kwargs) != "meta":
        return kwargs
    return {**kwargs, "device": device}


class _Mode(FakeTensorMode):
    """Fake tensors, where what C++ makes for one that it takes for a meta tensor goes along."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.in_kernel_invocation:
            kwargs = _placed(kwargs, CUDA)
        return super().dispatch(func, types, args, kwargs)


MODE = _Mode(allow_non_fake_inputs=True)


class Tape(TorchDispatchMode):
    """Runs what is dispatched, and notes kernels, waits for the device and copies to it.

    kernels: how many ran by name, PyTorch's and ours.
    waits, copies: where the host waited for the device, or sent it something: operator and line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: collections.Counter[str] = collections.Counter()
        self.waits: list[str] = []
        self.copies: list[str] = []
        self.own: dict[str, Callable[..., Any]] = {}

    def install(self) -> None:
        """Watch this process's operators from now on, the project's before they are defined."""
        _patch_fake_tensors()
        impl = torch.library.Library.impl

        def noted(library: Any, name: Any, function: Any, key: str = "", **more: Any) -> Any:
            if library.ns == NAMESPACE and key == "CompositeExplicitAutograd":
                self.own[name] = function
            return impl(library, name, function, key, **more)

        torch.library.Library.impl = noted
        _Devices().__enter__()
        self.__enter__()

    @contextmanager
    def section(self) -> Iterator[Tape]:
        """Count anew within; yields the tape."""
        self.kernels.clear()
        self.waits.clear()
        self.copies.clear()
        yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The value of `x[index] = 3` is made on the host, on a GPU.
        host = func.overloadpacket.__name__ == "scalar_tensor"
        kwargs = _placed(kwargs or {}, CPU if host else CUDA)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_gpu = any(is_on_gpu(t) for t in given)
        name = func.overloadpacket.__name__
        if not on_gpu and _wanted_device(kwargs) != "cuda":
            return func(*args, **kwargs)
        if func.namespace == NAMESPACE:
            with self:
                return self.own[name](*args, **kwargs)
        if on_gpu and (name in WAITING or _wanted_device(kwargs) == "cpu"):
            self._wait(func)
            if name == "_local_scalar_dense":
                return _number(given[0].dtype)
            if name in ("equal", "is_nonzero"):
                return True
            if _wanted_device(kwargs) == "cpu":
                return torch.zeros(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        if self._copies_from_host(name, args, kwargs):
            self.copies.append(f"{name} at {_place()}")
        self._count(func, name)
        if not func._schema.returns:
            return None  # only writes into what it is given
        with MODE:
            return func(*args, **kwargs)

    def _copies_from_host(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in ("copy_", "_to_copy"):
            source = args[1] if name == "copy_" else args[0]
            target = args[0] if name == "copy_" else None
            to_gpu = is_on_gpu(target) if target is not None else _wanted_device(kwargs) == "cuda"
            return to_gpu and not is_on_gpu(source)
        if name.startswith(("index_put", "_index_put_impl")):
            return not is_on_gpu(args[2])
        return False

    def _wait(self, func: Any) -> None:
        self.waits.append(f"{func.overloadpacket.__name__} at {_place()}")

    def _count(self, func: Any, name: str) -> None:
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and name not in WITHOUT_KERNEL:
            self.kernels[name] += 1


class _Devices(TorchFunctionMode):
    """Gives "cuda" its number, and draws without the generator of a device that is not there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WITHOUT_DEVICE:
            return func(*args, **kwargs)
        kwargs = dict(kwargs)
        if func is Tensor.cuda:
            func, args = Tensor.to, (args[0], CUDA)
        args, kwargs = _each(_numbered, args, kwargs)
        if func in (torch.tensor, torch.as_tensor) and _wanted_device(kwargs) == "cuda":
            del kwargs["device"]  # its own way to the device asks the driver
            return func(*args, **kwargs).to(CUDA)
        if _wanted_device(kwargs) == "cuda" or any(map(is_on_gpu, args)):
            kwargs.pop("generator", None)
        args, kwargs = _autocast(func, args, kwargs)
        meta = any(map(_is_meta, (*args, *kwargs.values())))
        _Asked.for_meta += meta
        try:
            if func is Tensor.to and is_on_gpu(args[0]) and meta:
                return _seeming(args[0], META)  # C++ would give back x itself
            return func(*args, **kwargs)
        finally:
            _Asked.for_meta -= meta


def _autocast(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Cast as autocast does in C++, which takes these tensors for none of its own."""
    if not torch.is_autocast_enabled("cuda") or func not in LOWERED | WIDENED:
        return args, kwargs
    dtype = torch.get_autocast_dtype("cuda") if func in LOWERED else torch.float32

    def cast(x: Any) -> Any:
        return x.to(dtype) if is_on_gpu(x) and x.is_floating_point() and x.dtype != dtype else x

    return _each(cast, args, kwargs)


def _each(change: Callable[[Any], Any], args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Return arguments changed one by one, and not what they hold, such as the memo of a copy."""
    return tuple(map(change, args)), {name: change(value) for name, value in kwargs.items()}


def is_on_gpu(x: Any) -> bool:
    """Return whether x is a tensor of the device that is not there."""
    return isinstance(x, FakeTensor) and x.fake_device.type == "cuda"


def _is_meta(x: Any) -> bool:
    """Return whether somebody asks for the meta device, or has a tensor there."""
    if isinstance(x, Tensor):
        return x.is_meta
    return (isinstance(x, torch.device) and x.type == "meta") or (
        isinstance(x, str) and x == "meta"
    )


def _numbered(x: Any) -> Any:
    if isinstance(x, str) and x == "cuda":
        return CUDA
    return CUDA if isinstance(x, torch.device) and x == torch.device("cuda") else x


def _seeming(x: Tensor, device: torch.device) -> Tensor:
    """Return what C++ takes for another x, and Python for a tensor of `device`."""
    with MODE:
        moved = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=CUDA)
    moved.fake_device = device
    return moved


def _wanted_device(kwargs: dict[str, Any]) -> str | None:
    device = kwargs.get("device")
    return None if device is None else torch.device(device).type


def _number(dtype: torch.dtype) -> Any:
    """Return what a program reads: no error, a false condition, a count of one."""
    return 0.0 if dtype.is_floating_point else int(dtype is not torch.bool)


def _place() -> str:
    """Return the line of the project that is running."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and "fake_gpu" not in path.parts and ".venv" not in str(path):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "?"


def _patch_fake_tensors() -> None:
    make = Tensor._make_subclass

    def make_on_meta(cls: Any, data: Any, *more: Any, **named: Any) -> Any:
        return make(cls, data, *more, **{**named, "dispatch_device": False})

    Tensor._make_subclass = staticmethod(make_on_meta)
    torch._C._ensureCUDADeviceGuardSet = lambda: None
    swap = torch.utils.swap_tensors

    def swap_or_set(a: Any, b: Any) -> None:
        # What a module does to fake parameters needs that nobody else refers to them.
        if isinstance(a, FakeTensor) and isinstance(b, FakeTensor):
            a.data = _seeming(b, b.fake_device)
            a.fake_device = b.fake_device
        else:
            swap(a, b)

    torch.utils.swap_tensors = swap_or_set
    fake_tensor.init_gpu_context = lambda *_: None
    FakeTensorMode.avoid_device_init = True
    FakeTensor.is_cuda = property(lambda x: x.fake_device.type == "cuda")
    FakeTensor.is_cpu = property(lambda x: x.fake_device.type == "cpu")
    FakeTensor.is_meta = property(lambda x: x.fake_device.type == "meta")
    FakeTensor.get_device = lambda x: x.fake_device.index if x.is_cuda else -1
    # As the caching allocator gives it out; views begin where they do.
    FakeTensor.data_ptr = lambda x: 2**20 + x.storage_offset() * x.element_size()
