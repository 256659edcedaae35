"""Time the kernels against the dense library, pass by pass, and append the rows to one CSV.

    python -m bench.kernels                         on a GPU: WRN-28-10's layers and a linear one
    python -m bench.kernels --budget 120            the most important rows first, stop in time
    SPARSE_ENGINE_BACKEND=triton TRITON_INTERPRET=1 python -m bench.kernels --tiny   dry check

The baseline is the best dense one: bf16, channels_last, cudnn.benchmark, and for linear layers also
torch.sparse's BSR. A case whose result is wrong gives no row. Efficiency is per active FLOP:
dense time x density / time; 100 % is the dense library's own rate.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.activation import in_order
from sparse_kernels.backend import backend_of
from sparse_kernels.layout import block_grid
from sparse_kernels.reference import gather_blocks, scatter_blocks

PASSES = ("forward", "input gradient", "weight gradient")
# Two roundings to bf16 differ by about 4e-3; a wrong index gives an error near 1.
LARGEST_ERROR = 2e-2
COLUMNS = (
    "device", "driver", "torch", "triton", "commit", "layer", "batch", "block", "density", "order",
    "provider", "pass", "p20_ms", "p50_ms", "p80_ms", "tflops", "speedup", "efficiency", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A layer to time: weight (O, C, R, S), image (H, W) and batch; H = 0 for a linear one."""

    name: str
    weight: tuple[int, ...]
    image: tuple[int, ...]
    batch: int


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


@dataclass(frozen=True)
class Problem:
    """One layer with one choice of blocks, and what its passes should give."""

    layer: Layer
    layout: BlockLayout
    x: Tensor
    values: Tensor
    grad: Tensor
    dense: Tensor

    @property
    def positions(self) -> int:
        """Vectors of output channels."""
        return self.grad.numel() // self.layer.weight[0]


def make_problem(layer: Layer, block: tuple[int, int], density: float, device: str) -> Problem:
    """Return random blocks at a density, and random inputs, in bf16 (fp32 on a CPU)."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    mask = torch.rand(block_grid(layer.weight, block)) < density
    mask.view(-1)[0] = True
    layout = BlockLayout.from_mask(mask, layer.weight, block).to(device)
    weight = torch.randn(layout.shape, device=device, dtype=dtype)
    values = gather_blocks(weight, layout.tensors(), layout.sizes())
    x = torch.randn(layer.batch, layer.weight[1], *layer.image, device=device, dtype=dtype)
    grad = torch.randn(layer.batch, layer.weight[0], *layer.image, device=device, dtype=dtype)
    dense = scatter_blocks(values, layout.tensors(), layout.sizes()).view(layer.weight)
    return Problem(layer, layout, x, values, grad, dense)


def dense_passes(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """Return the dense library's three passes."""
    x, weight, grad = problem.x, problem.dense, problem.grad
    if not problem.layer.image:
        return {
            "forward": lambda: F.linear(x, weight),
            "input gradient": lambda: grad @ weight,
            "weight gradient": lambda: grad.T @ x,
        }
    x, weight, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight, grad))
    pad = problem.layer.weight[2] // 2

    def backward(which: int) -> Callable[[], Tensor]:
        wanted = [which == 0, which == 1, False]
        return lambda: torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, wanted
        )[which]

    return {
        "forward": lambda: F.conv2d(x, weight, None, 1, pad),
        "input gradient": backward(0),
        "weight gradient": backward(1),
    }


def sparse_passes(problem: Problem, order: str) -> dict[str, Callable[[], Tensor]]:
    """Return our three passes, with activations in an order."""
    from sparse_kernels import convolution, matmul

    index, sizes = problem.layout.tensors(), problem.layout.sizes()
    x, values, grad = problem.x, problem.values, problem.grad
    if not problem.layer.image:
        return {
            "forward": lambda: block_linear(x, values, problem.layout),
            "input gradient": lambda: matmul.linear_input_grad(grad, values, index, sizes),
            "weight gradient": lambda: matmul.linear_weight_grad(x, grad, index, sizes),
        }
    x, grad = in_order(x, order), in_order(grad, order)
    pad, one = [problem.layer.weight[2] // 2] * 2, [1, 1]
    image = list(problem.layer.image)
    return {
        "forward": lambda: block_conv2d(x, values, problem.layout, padding=pad),
        "input gradient": lambda: convolution.conv2d_input_grad(
            grad, values, index, sizes, image, one, pad, one
        ),
        "weight gradient": lambda: convolution.conv2d_weight_grad(
            x, grad, index, sizes, one, pad, one
        ),
    }


def bsr_forward(problem: Problem) -> Callable[[], Tensor] | None:
    """Return torch.sparse's BSR product of a linear layer, None where it cannot run."""
    bo, bc = problem.layout.block
    if problem.layer.image or bo != bc or problem.x.device.type != "cuda":
        return None
    weight = problem.dense.to_sparse_bsr((bo, bc))
    return lambda: F.linear(problem.x, weight)


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


def measure(problem: Problem, device: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one problem: dense, ours in each order, BSR."""
    layout, dense = problem.layout, dense_passes(problem)
    flops = 2 * problem.positions * problem.dense.numel()
    right = {name: run() for name, run in dense.items()}
    right["weight gradient"] = gather_blocks(
        right["weight gradient"].reshape(layout.shape), layout.tensors(), layout.sizes()
    )
    baseline = {name: milliseconds(run, device) for name, run in dense.items()}
    backend = backend_of(problem.x, layout.tensors(), layout.sizes(), problem.positions)
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
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        raise SystemExit("bench.kernels needs a CUDA GPU; --tiny checks the harness without one")
    torch.backends.cudnn.benchmark = True
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
            for row in measure(make_problem(layer, block, density, device), device):
                writer.writerow({**facts, **row})
                print_row(row)
            file.flush()
    print(f"rows appended to {path}")


if __name__ == "__main__":
    main()
