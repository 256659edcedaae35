"""Time the kernels against the dense library, pass by pass, and append the rows to one CSV.

    python -m bench.kernels                         on a GPU: WRN-28-10's layers and a linear one
    python -m bench.kernels --budget 120            the most important rows first, stop in time
    python -m bench.kernels --tune                  with tiles tuned for each case, and which
    SPARSE_ENGINE_BACKEND=triton TRITON_INTERPRET=1 python -m bench.kernels --tiny   dry check

The baseline is the best dense one: bf16, channels_last, cudnn.benchmark, and for linear layers also
torch.sparse's BSR. A case whose result is wrong gives no row. Efficiency is per active FLOP:
dense time x density / time; 100 % is the dense library's own rate.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton

from bench.problems import (
    Layer,
    Problem,
    bsr_forward,
    dense_passes,
    make_problem,
    sparse_passes,
)
from sparse_kernels.activation import in_order
from sparse_kernels.backend import VARIABLE, backend_of
from sparse_kernels.reference import gather_blocks
from sparse_kernels.tuner import tune_conv2d

PASSES = ("forward", "input gradient", "weight gradient")
# Two roundings to bf16 differ by about 4e-3; a wrong index gives an error near 1.
LARGEST_ERROR = 2e-2
COLUMNS = (
    "device", "driver", "torch", "triton", "commit", "layer", "batch", "block", "density", "order",
    "provider", "pass", "p20_ms", "p50_ms", "p80_ms", "tflops", "speedup", "efficiency", "error",
)  # fmt: skip


LAYERS = (
    Layer("conv 3x3 320 at 16x16", (320, 320, 3, 3), (16, 16), 128),
    Layer("conv 3x3 640 at 8x8", (640, 640, 3, 3), (8, 8), 128),
    Layer("linear 4096x4096", (4096, 4096), (), 8192),
    Layer("conv 3x3 160 at 32x32", (160, 160, 3, 3), (32, 32), 128),
)
TINY = (
    Layer("conv 3x3 32 at 2x2", (32, 32, 3, 3), (2, 2), 128),
    Layer("linear 32x64", (32, 64), (), 128),
)
BLOCKS = ((64, 64), (32, 32), (128, 128), (128, 64))
DENSITIES = (0.2, 0.1, 0.5, 0.05)
ORDERS = ("rows", "channels_last")


def tune(problem: Problem, device: str) -> None:
    """Use the fastest tiles for a problem from now on, and print them."""
    images = bool(problem.layer.image)
    pad = [problem.layer.weight[2] // 2] * 2 if images else [0, 0]
    for order in ORDERS if images else ("rows",):
        x = in_order(problem.x if images else problem.x[:, :, None, None], order)
        found = tune_conv2d(x, problem.values, problem.layout, [1, 1], pad, [1, 1])
        for key, tile in found.items():
            print(f"tuned {key}: {tile}", flush=True)


def milliseconds(function: Callable[[], Any], device: str) -> tuple[float, float, float]:
    """Return p20, p50 and p80 of a function's time."""
    if device == "cuda":
        quantiles = [0.2, 0.5, 0.8]
        return tuple(triton.testing.do_bench(function, warmup=20, rep=80, quantiles=quantiles))
    function()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - began))
    return min(times), statistics.median(times), max(times)


def measure(problem: Problem, device: str, tuned: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of one problem: dense, ours in each order, BSR."""
    layout, dense = problem.layout, dense_passes(problem)
    flops = 2 * problem.positions * problem.dense.numel()
    right = {name: run() for name, run in dense.items()}
    right["weight gradient"] = gather_blocks(
        right["weight gradient"].reshape(layout.shape), layout.tensors(), layout.sizes()
    )
    baseline = {name: milliseconds(run, device) for name, run in dense.items()}
    backend = backend_of(problem.x, layout.tensors(), layout.sizes(), problem.positions)
    backend += " tuned" if tuned else ""
    providers = [("dense", "channels_last", dense)]
    orders = ORDERS if problem.layer.image else ("rows",)
    providers += [(backend, order, sparse_passes(problem, order)) for order in orders]
    if bsr := bsr_forward(problem):
        providers.append(("torch BSR", "rows", {"forward": bsr}))
    for provider, order, passes in providers:
        for name, run in passes.items():
            share = 1.0 if provider == "dense" else layout.density
            error = 0.0
            if provider != "dense":
                found = run().float()
                error = float((found - right[name].float()).norm() / right[name].float().norm())
            if not error < LARGEST_ERROR:
                print(f"no row: {problem.layer.name} {provider} {name} is wrong by {error:.1e}")
                continue
            times = baseline[name] if provider == "dense" else milliseconds(run, device)
            yield {
                "layer": problem.layer.name,
                "batch": problem.layer.batch,
                "block": "x".join(map(str, layout.block)),
                "density": f"{layout.density:.4f}",
                "order": order,
                "provider": provider,
                "pass": name,
                **{f"p{q}_ms": f"{t:.5f}" for q, t in zip((20, 50, 80), times)},
                "tflops": f"{flops * share / times[1] / 1e9:.2f}",
                "speedup": f"{baseline[name][1] / times[1]:.3f}",
                "efficiency": f"{baseline[name][1] * share / times[1]:.3f}",
                "error": f"{error:.1e}",
            }


def environment(device: str) -> dict[str, str]:
    """Return what a figure must be quoted with."""
    root = Path(__file__).parent
    commit = _output("git", "-C", str(root), "describe", "--always", "--dirty")
    gpu = device == "cuda"
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "driver": _output(*query) if gpu else "-",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit,
    }


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "-"
    except OSError:
        return "-"


def print_row(row: dict[str, Any]) -> None:
    """Print the part of a row that a person looks at."""
    print(
        f"{row['layer']:24} {row['block']:>8} density {row['density']} {row['provider']:>9} "
        f"{row['order']:13} {row['pass']:15} {row['p50_ms']:>9} ms  x{row['speedup']}  "
        f"efficiency {float(row['efficiency']):.0%}",
        flush=True,
    )


def main() -> None:
    """Measure until done or out of time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench/reports"), help="folder")
    parser.add_argument("--budget", type=float, default=540, help="seconds")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check the harness")
    parser.add_argument("--tune", action="store_true", help="tune each case before it is timed")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        raise SystemExit("bench.kernels needs a CUDA GPU; --tiny checks the harness without one")
    torch.backends.cudnn.benchmark = True
    if device == "cuda":
        os.environ.setdefault(VARIABLE, "triton")  # above break-even too, to see where it lies
    layers = TINY if options.tiny else LAYERS
    blocks, densities = (((32, 32),), (0.5,)) if options.tiny else (BLOCKS, DENSITIES)
    options.out.mkdir(parents=True, exist_ok=True)
    path, facts, began = options.out / "kernels.csv", environment(device), time.perf_counter()
    print(facts)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            writer.writeheader()
        for density, block, layer in itertools.product(densities, blocks, layers):
            if time.perf_counter() - began > options.budget:
                print("out of time; the rows left out are the less important ones")
                break
            problem = make_problem(layer, block, density, device)
            if options.tune:
                tune(problem, device)
            for row in measure(problem, device, options.tune):
                writer.writerow({**facts, **row})
                print_row(row)
            file.flush()
    print(f"rows appended to {path}")


if __name__ == "__main__":
    main()
