"""Threads of the native kernels, of three kinds, between operators of torch on two of its own.

`python -m bench.dev.native_threads`. A step is a pass of tiles as a kernel makes them, an operator
of torch, another pass and another operator. Busy processes beside it are the machine's other work:
what the runtime's threads gain on a quiet machine they lose many times on a busy one.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from bench.dev.harness import print_table
from bench.speed.timing import WALL, ratio_text, steps_in_turn, time_text
from sparse_kernels.cpu import library
from sparse_kernels.cpu.compiler import compilers

KINDS = ("the runtime's", "our own", "both, as kernels do", "one thread")
COLUMNS = ("busy", "tiles", *KINDS, "both / one")
FLAGS = {"threads": 2, "rounds": 7, "steps": 10, "busy": [0, 1, 2], "tiles": [100, 800]}
# About 5 microseconds a tile. The threads' own file is included, for a look behind its interface.
TILES = """
#include "{folder}/threads.cpp"
static void tiles(void* context, int64_t first, int64_t last) {{
  typedef float Vector __attribute__((vector_size(64)));
  float* out = static_cast<float*>(context);
  for (int64_t i = first; i < last; ++i) {{
    Vector sums[8] = {{}}, factor = Vector{{}} + 0.999f;
    for (int k = 0; k < 5000; ++k)
      for (Vector& sum : sums) sum = sum * factor + factor;
    for (const Vector& sum : sums) out[i] = out[i] * 0.5f + sum[0];
  }}
}}
extern "C" void pass(float* out, int64_t count, int threads, int kind) {{
  Work work{{tiles, out, count, 1}};
  if (kind == 0) in_threads_of_the_runtime(runtime, work, threads);
  else if (kind == 1) in_threads_of_our_own(*pool, work, threads);
  else in_threads(tiles, out, count, 1, kind == 2 ? threads : 1);
}}
"""


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each number of busy processes and of tiles, then the machine's load."""
    run = _compiled()
    image = torch.randn(32, 64, 32, 32)
    result = torch.empty_like(image)

    def steps(kind: int, out: torch.Tensor) -> None:
        for _ in range(options.steps):
            for operator in (torch.mul, torch.add):
                run(out.data_ptr(), len(out), options.threads, kind)
                operator(image, 2, out=result)

    for busy in options.busy:
        with _busy(busy):
            for count in options.tiles:
                ways = {k: partial(steps, k, torch.zeros(count)) for k in range(len(KINDS))}
                taken = steps_in_turn(ways, options.rounds, WALL)
                each = [[seconds / options.steps for seconds in taken[kind]] for kind in ways]
                cells = [time_text(seconds) for seconds in each]
                yield [f"{busy}", f"{count}", *cells, ratio_text(each[2], each[3])]
        yield [f"load {os.getloadavg()[0]:.1f}", *[""] * (len(COLUMNS) - 1)]


@contextmanager
def _busy(processes: int) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _compiled() -> Callable[[int, int, int, int], None]:
    """Return what makes a pass, of an address, a number of tiles, one of threads and a kind."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "tiles.cpp", Path(folder) / "tiles.so"
        source.write_text(TILES.format(folder=library.SOURCE))
        next(compilers()).build([source], target)
        make_pass = library.with_runtime(ctypes.CDLL(str(target)))["pass"]
    make_pass.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int)
    return make_pass


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
