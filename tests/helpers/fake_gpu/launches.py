"""Launches of Triton kernels as the driver would see them, bound and specialised, not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fake_gpu.compiler import Compiler, Source
from fake_gpu.cuda import State
from fake_gpu.tensors import Tape, is_on_gpu


@dataclass(frozen=True)
class Pointer:
    """What Triton asks of a tensor: its type and its address."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        """Return the address."""
        return self.address


class Launches:
    """Takes the place of Triton's driver; `sources` are the kernels launched, each once."""

    def __init__(self, arch: int, compiler: Compiler | None, tape: Tape) -> None:
        self.arch, self.compiler, self.tape = arch, compiler, tape
        self.sources: dict[str, Source] = {}

    def install(self) -> None:
        """Let every `kernel[grid](...)` of this process come here."""
        from triton.runtime import driver
        from triton.runtime.jit import JITFunction

        driver.set_active(_Driver(self.arch))
        JITFunction.__getitem__ = lambda kernel, grid: (
            lambda *args, **kwargs: self.launch(kernel, args, kwargs)
        )

    def finish(self) -> None:
        """Wait for the compilers, as a program would for its kernels.

        Raises:
            RuntimeError: a kernel cannot be compiled, or not be launched on this device.
        """
        if self.compiler is not None:
            self.compiler.finish()

    def launch(self, kernel: Any, args: Any, kwargs: Any) -> None:
        """Do what a launch does up to the driver.

        Raises:
            RuntimeError: a tensor of another device, or a kernel known not to compile.
        """
        _check_devices(kernel.__name__, [*args, *kwargs.values()])
        given = [_as_pointer(a) for a in args]
        named = {k: _as_pointer(v) for k, v in kwargs.items()}
        named.setdefault("debug", False)
        # Caches are by device: those of a test that changes the generation must not meet.
        _, _, _, backend, binder = kernel.device_caches[self.arch]
        bound, specialization, options = binder(*given, **named)
        key = f"{kernel.__name__} {specialization} {sorted(options.items())}"
        if key not in self.sources:
            settings, signature, constexprs, attrs = kernel._pack_args(
                backend, named, bound, specialization, options
            )
            source = Source(
                kernel.__module__, kernel.__name__, signature, constexprs, attrs, settings.__dict__
            )
            self.sources[key] = source
            if self.compiler is not None:
                self.compiler.submit(key, source)
        if self.compiler is not None and key in self.compiler.failed:
            raise RuntimeError(self.compiler.failed[key])
        self.tape.kernels[kernel.__name__] += 1


class _Driver:
    """Triton's view of the device."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, _: Any) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", State.device)


def _check_devices(name: str, args: Any) -> None:
    """Raise unless every tensor of a launch lies on the current device."""
    for x in args:
        base = getattr(x, "base", x)
        if isinstance(base, Tensor) and (not is_on_gpu(base) or base.device.index != State.device):
            raise RuntimeError(
                f"{name} is launched on device {State.device} with a tensor on {base.device}"
            )


def _as_pointer(x: Any) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    if isinstance(x, TensorDescriptor):
        base = _as_pointer(x.base)
        return TensorDescriptor(base, list(x.shape), list(x.strides), x.block_shape)
    return Pointer(x.dtype, x.data_ptr()) if isinstance(x, Tensor) else x
