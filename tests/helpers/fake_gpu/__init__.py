"""A GPU that is not there: what a launch on it would compile, without computing anything.

`install(arch)` turns this process, for good, into one that has a CUDA device of a generation, such
as 90 for sm_90. Tensors on it have a shape and a type and no numbers (tensors.py); every kernel of
the project is bound, specialised and compiled exactly as a launch would do it (launches.py), in
processes of its own (compiler.py); streams, events, graphs and memory are stand-ins (cuda.py). It
has to be called before the kernels are imported. What it cannot show: whether a result is right,
and how long anything takes.
"""

from __future__ import annotations

from fake_gpu.compiler import Compiler
from fake_gpu.cuda import install_cuda
from fake_gpu.launches import Launches
from fake_gpu.tensors import Tape

__all__ = ["FakeGpu", "install"]


class FakeGpu:
    """The device of this process: `tape` knows what ran on it, `launches` what was launched."""

    def __init__(self, arch: int, compiler: Compiler | None) -> None:
        self.arch = arch
        self.tape = Tape()
        self.launches = Launches(arch, compiler, self.tape)


def install(arch: int, compile_in: int = 0) -> FakeGpu:
    """Give this process a CUDA device that is not there, and leave it so.

    Args:
        arch: 80, 89, 90, 100 or 120.
        compile_in: processes that compile; 0 to stop where a kernel is specialised.
    """
    install_cuda(arch)
    gpu = FakeGpu(arch, Compiler(arch, compile_in) if compile_in else None)
    gpu.tape.install()
    gpu.launches.install()
    return gpu
