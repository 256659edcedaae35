"""Kernels compiled in processes of their own, and what the compiled code says about itself."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """A kernel with everything that its code depends on."""

    module: str
    name: str
    signature: dict[str, Any]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel: registers a thread, bytes of stack and shared memory."""

    name: str
    registers: int
    stack: int
    shared: int
    seconds: float


class Compiler:
    """Compiles in the background; Triton's cache on disk keeps the results."""

    def __init__(self, arch: int, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.arch = arch
        self._pool = ProcessPoolExecutor(max(1, processes), context, initializer=_quiet)
        self._pending: dict[str, Future[Compiled]] = {}
        self.compiled: dict[str, Compiled] = {}
        self.failed: dict[str, str] = {}

    def submit(self, key: str, source: Source) -> None:
        """Begin to compile a kernel."""
        self._pending[key] = self._pool.submit(compile_source, self.arch, source)

    def finish(self) -> None:
        """Wait for all that was submitted.

        Raises:
            RuntimeError: some of it does not compile, spills or needs more memory than there is.
        """
        wrong = []
        pending, self._pending = self._pending, {}
        for key, future in pending.items():
            try:
                found = future.result()
                problem = self.problem(found)
                self.compiled[key] = found
            except Exception as error:  # a compiler raises what it likes
                words = str(error).strip().splitlines() or ["no message"]
                problem = f"{key.split()[0]} does not compile: {type(error).__name__}: {words[-1]}"
            if problem:
                self.failed[key] = problem
                wrong.append(problem)
        if wrong:
            raise RuntimeError(f"{wrong[0]} ({len(wrong)} kernels)")

    def problem(self, found: Compiled) -> str:
        """Return what is wrong with a kernel, in words; nothing if it can be launched."""
        if found.stack:
            return f"{found.name} spills {found.stack} bytes"
        from sparse_kernels.triton.tiles import SHARED_LIMIT

        limit = SHARED_LIMIT[self.arch]
        if found.shared > limit:
            return f"{found.name} needs {found.shared} bytes of shared memory, there are {limit}"
        return ""


def compile_source(arch: int, source: Source) -> Compiled:
    """Compile a kernel for sm_{arch} and read what came of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bench.dev.cubin import resources

    began = time.monotonic()
    kernel = getattr(importlib.import_module(source.module), source.name)
    code = ASTSource(kernel, source.signature, source.constants, source.attributes)
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(code, target=target, options=source.options)
    registers, stack = resources(compiled.asm["cubin"])
    seconds = time.monotonic() - began
    return Compiled(source.name, registers, stack, compiled.metadata.shared, seconds)


def _quiet() -> None:
    """Leave an interruption to the process that submits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
