"""Time single layers against the dense library and peers, pass by pass, into the reports' CSV.

    python -m bench.kernels                         WRN-28-10's layers and a linear one
    python -m bench.kernels --budget 120            the most important rows first, stop in time
    python -m bench.kernels --tune                  with tiles tuned for each case, and which
    SPARSE_ENGINE_BACKEND=triton TRITON_INTERPRET=1 python -m bench.kernels --tiny   dry check

The baseline is the best dense one: channels_last, cudnn.benchmark, bf16 on a GPU and fp32 on a CPU.
A case whose result is wrong gives no row. Efficiency is per active FLOP: dense time x density /
time; 100 % is the dense library's own rate.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from bench.report import records as files
from bench.report.records import Records
from bench.report.tables import line
from bench.speed.correctness import LAYER_LIMITS, relative_error
from bench.speed.jobs import Budget, Job, run_jobs, say_no_row
from bench.speed.problems import (
    Layer,
    Passes,
    Problem,
    dense_passes,
    make_problem,
    peers,
    right_results,
    sparse_passes,
)
from bench.speed.roofline import nearest_bound, rates_of, traffic
from bench.speed.timing import clock_of, cold, quantile, ratios, replays, speeds, steps_in_turn
from sparse_engine.config.flags import Parser, run_command, user_path
from sparse_kernels.dispatch.backend import VARIABLE
from sparse_kernels.memory_order import in_order
from sparse_kernels.tuner import tune_conv2d

PASSES = ("forward", "input gradient", "weight gradient")
LAYERS = (
    Layer("conv 3x3 320 at 16x16", (320, 320, 3, 3), (16, 16), 128, 8),
    Layer("conv 3x3 640 at 8x8", (640, 640, 3, 3), (8, 8), 128, 8),
    Layer("linear 4096x4096", (4096, 4096), (), 8192),
    Layer("conv 3x3 160 at 32x32", (160, 160, 3, 3), (32, 32), 128, 8),
)
TINY = (
    Layer("conv 3x3 32 at 2x2", (32, 32, 3, 3), (2, 2), 128),
    Layer("linear 32x64", (32, 64), (), 128),
)
BLOCKS = ((64, 64), (32, 32), (128, 128), (128, 64), (16, 16))
DENSITIES = (0.2, 0.1, 0.5, 0.05, 1.0)
# That a problem takes on a GPU for the dense library and for each order of ours: most of it is the
# libraries' search and the kernels' compilation.
SECONDS = 1.25
ORDERS = ("rows", "channels_last")
ROUNDS, GPU_ROUNDS = 5, 50
Key = tuple[str, str]  # variant and pass


class Kernels:
    """What the problems of one run share: where rows go, and how they are timed."""

    def __init__(self, records: Records, device: str, tuned: bool = False) -> None:
        self.records, self.device, self.tuned = records, device, tuned

    def job(
        self, layer: Layer, block: tuple[int, int], density: float, orders: Sequence[str] = ORDERS
    ) -> Job:
        """Return the job of one problem, with our kernels on activations in some orders."""
        name = f"{layer.name}, blocks {block[0]}x{block[1]}, density {density}"
        if orders != ORDERS:
            name = f"{name}, in {' and '.join(orders)}"
        return Job(
            name,
            SECONDS * (1 + len(orders)),
            lambda: self.run(make_problem(layer, block, density, self.device), orders),
        )

    def run(self, problem: Problem, orders: Sequence[str] = ORDERS) -> None:
        """Check and time all variants of a problem; append their rows."""
        if self.tuned:
            tune(problem)
        passes = {("dense", which): run for which, run in dense_passes(problem).items()}
        errors = dict.fromkeys(passes, 0.0)
        for name, own, right in self._variants(problem, orders):
            for which, run in own.items():
                try:
                    errors[name, which] = _checked(run, right[which])
                    passes[name, which] = run
                except Exception as failure:
                    say_no_row(f"{problem.layer.name} {name} {which}", failure)
        times = self._times(problem.layer.name, passes)
        for (name, which), seconds in times.items():
            if ("dense", which) not in times:
                continue  # nothing to compare with
            row = self._row(problem, name, which, seconds, times["dense", which])
            print(line(self.records.add(error=f"{errors[name, which]:.1e}", **row)), flush=True)

    def _variants(
        self, problem: Problem, orders: Sequence[str]
    ) -> Iterator[tuple[str, Passes, Mapping[str, Tensor]]]:
        """Yield name, passes and what they should give, of ours and of peers."""
        right = right_results(problem)
        backends = ("triton", "masked") if self.device == "cuda" else ("native", "masked")
        if wanted := os.environ.get(VARIABLE):
            backends = (wanted,)
        orders = orders if problem.layer.image else ("rows",)
        for backend, order in itertools.product(backends, orders):
            # The other paths gain nothing from rows, which the images here are not in.
            if backend == "triton" or order == orders[-1]:
                tuned = " tuned" * self.tuned
                yield f"{backend} {order}{tuned}", sparse_passes(problem, order, backend), right
        for make in peers(problem):
            try:
                name, forward, expected = make()
            except Exception as error:
                say_no_row(f"{problem.layer.name}: a peer", error)
                continue
            yield name, {"forward": forward}, {"forward": expected}

    def _times(
        self, subject: str, passes: Mapping[Key, Callable[[], Tensor]]
    ) -> dict[Key, list[float]]:
        """Return the seconds of each pass that can be timed, in turn."""
        if self.device == "cpu":
            return steps_in_turn(passes, ROUNDS, clock_of("cpu"))
        captured = replays(passes)
        for key, replay in list(captured.items()):
            if isinstance(replay, Exception):
                say_no_row(f"{subject} {' '.join(key)} not captured", captured.pop(key))
        return cold(captured, GPU_ROUNDS)

    def _row(
        self, problem: Problem, name: str, which: str, seconds: list[float], dense: list[float]
    ) -> dict[str, Any]:
        layout, kind = problem.layout, name.split()[0]
        density = {"dense": 1.0, "torch 2:4": 0.5}.get(name, layout.density)
        columns = speeds(seconds, 2 * problem.positions * problem.dense.numel(), density)
        # That of strips, which read less through L2, is not known here.
        known = kind in ("triton", "native") and problem.layer.taps == "each"
        rates = rates_of(files.device_name(self.device)) if known else None
        channels = sum(problem.layer.weight[:2])
        work = traffic(which, problem.positions, channels, layout.active, layout.block)
        return {
            "report": "kernels",
            "dtype": "bf16" if self.device == "cuda" else "fp32",
            "subject": problem.layer.name,
            "batch": len(problem.x),
            "contender": name,
            "label": "dense" if kind in ("dense", "masked") else "sparse",
            "density": density,
            "sparsity": None if name == "dense" else 1 - density,
            "block": None if name == "dense" else "x".join(map(str, layout.block)),
            "phase": which,
            **columns,
            **(ratios(seconds, dense) if self.device == "cpu" else {}),
            "dense_ms": 1e3 * quantile(dense, 0.5),
            "against": "dense",
            "roofline": 1e3 * nearest_bound(*work, rates) / columns["p50_ms"] if rates else None,
        }


def _checked(run: Callable[[], Tensor], right: Tensor) -> float:
    """Return the relative error of a pass, or raise ArithmeticError."""
    error = relative_error(run().float(), right.float())
    if not error < LAYER_LIMITS["bf16"]:
        raise ArithmeticError(f"it is wrong by {error:.1e}")
    return error


def tune(problem: Problem) -> None:
    """Use the fastest tiles for a problem from now on, and print them."""
    layer, image = problem.layer, problem.x if problem.layer.image else problem.x[:, :, None, None]
    for order in ORDERS if layer.image else ("rows",):
        x = in_order(image, order)
        for key, tile in tune_conv2d(x, problem.values, problem.layout, *layer.geometry).items():
            print(f"tuned {key}: {tile}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Measure until done or out of time."""
    parser = Parser(prog="python -m bench.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=user_path, default=files.REPORTS, help="folder of the CSV")
    parser.add_argument("--budget", type=float, default=540, help="seconds")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check the harness")
    parser.add_argument("--tune", action="store_true", help="tune each case before it is timed")
    options = parser.parse_strictly(arguments)
    device, records = files.opened(options.out, "kernels", options.threads)
    layers = TINY if options.tiny else LAYERS
    blocks, densities = (((32, 32),), (0.5,)) if options.tiny else (BLOCKS, DENSITIES)
    kernels = Kernels(records, device, options.tune)
    jobs = [
        kernels.job(layer, block, density)
        for density, block, layer in itertools.product(densities, blocks, layers)
    ]
    run_jobs(jobs, Budget(options.budget))
    print(f"rows appended to {records.path}")


if __name__ == "__main__":
    run_command(main)
