"""Seconds that each layer takes by its density, measured on the device and kept on disk.

A measurement is forward and both gradients of one layer with random blocks, on the backend that
the run would take, in turn with the dense layer. Equal layers are measured once. What was measured
is kept by device, versions and source of the kernels in $SPARSE_ENGINE_CACHE
(~/.cache/sparse-engine), so that a second run decides as the first did.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import logging
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

import sparse_kernels
from sparse_engine.distribution import LayerPlan
from sparse_engine.layer import random_layout
from sparse_engine.layer_problems import Problem
from sparse_engine.modules import SparseConv2d, SparseLinear
from sparse_engine.timed import TimeCurve
from sparse_kernels.backend import VARIABLE
from sparse_kernels.tile_cache import cache_path, write_whole
from sparse_kernels.timing import once

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
ROUNDS = 5
# A CPU's time grows in proportion to the images once its products are long enough.
CPU_POSITIONS = 4096


def measure_layer_times(
    plans: Sequence[LayerPlan],
    problems: Mapping[str, Sequence[Problem]],
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, TimeCurve]:
    """Return the curve of every layer, measured now or before.

    Args:
        plans: of all layers with every block active: their blocks and taps are those measured.
        problems: of layer_problems; times of several calls add up.
        model: dense, on the meta device; the layers measured are made after its own.
        device: where to measure.
        dtype: float32, or what autocast computes in.
    """
    path = _cache_file(device)
    known = _read(path)
    counts = {plan.name: measured_counts(plan) for plan in plans}
    wanted = {
        _key(plan, problem, dtype): (plan, problem)
        for plan in plans
        for problem in problems[plan.name]
    }
    for key in tqdm([k for k in wanted if k not in known], "timing layers", disable=None):
        plan, problem = wanted[key]
        module = model.get_submodule(plan.name)
        known[key] = measure(plan, problem, module, counts[plan.name], device, dtype)
    _keep(path, {key: known[key] for key in wanted})
    return {
        plan.name: TimeCurve(
            counts[plan.name],
            tuple(map(sum, zip(*(known[_key(plan, call, dtype)] for call in problems[plan.name]))))
            or (0.0,) * len(counts[plan.name]),
        )
        for plan in plans
    }


def measured_counts(plan: LayerPlan) -> tuple[int, ...]:
    """Return the numbers of active blocks that are measured: one (or one group) up to all."""
    groups = plan.total // plan.group
    between = {max(1, round(density * groups)) for density in DENSITIES}
    return tuple(plan.group * count for count in sorted({1, *between, groups}))


def measure(
    plan: LayerPlan,
    problem: Problem,
    module: nn.Module,
    counts: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> list[float]:
    """Return the seconds of a step's work of a layer by its active blocks, the dense layer last."""
    generator = torch.Generator(device).manual_seed(0)
    images = problem.sizes[0]
    if device.type == "cpu":
        most = CPU_POSITIONS * torch.get_num_threads()
        images = min(images, max(1, most * images // problem.positions))
    sizes = (images, *problem.sizes[1:])
    x = torch.randn(sizes, device=device, generator=generator).to(dtype)
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    dense = copy.deepcopy(module).to_empty(device=device)
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    if x.ndim == 4:
        dense = dense.to(memory_format=torch.channels_last)
    kind = SparseConv2d if isinstance(dense, nn.Conv2d) else SparseLinear
    draw = torch.Generator().manual_seed(0)
    layers = [
        kind.from_dense(dense, layout=random_layout(plan.shape, plan.block, count, draw, plan.taps))
        for count in counts[:-1]
    ]
    passes = [_passes(layer, x, problem.input_gradient) for layer in (*layers, dense)]
    seconds = _medians(passes, device)
    return [problem.sizes[0] / images * s for s in seconds]


def _passes(layer: nn.Module, x: torch.Tensor, input_gradient: bool) -> Callable[[], object]:
    """Return forward and gradients of a layer as a function without arguments."""
    x = x.detach().requires_grad_(input_gradient)
    leaves = [*layer.parameters(), *([x] if input_gradient else [])]
    lower = x.dtype != torch.float32

    def forward() -> torch.Tensor:
        with torch.autocast(x.device.type, x.dtype if lower else None, enabled=lower):
            return layer(x)

    with torch.no_grad():
        grad = torch.ones_like(forward())
    return lambda: torch.autograd.grad(forward(), leaves, grad)


def _medians(passes: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Return the median seconds of functions that are called in turn; a first round is not used."""
    taken: list[list[float]] = [[] for _ in passes]
    for _ in range(ROUNDS + 1):
        for run, seconds in zip(passes, taken):
            seconds.append(once(run, device.type == "cuda"))
    return [statistics.median(seconds[1:]) for seconds in taken]


def _key(plan: LayerPlan, problem: Problem, dtype: torch.dtype) -> str:
    """Return everything that a layer's times depend on besides the machine."""
    gradient = "input gradient" if problem.input_gradient else "no input gradient"
    backend = os.environ.get(VARIABLE, "auto")
    parts = (problem.layer, problem.sizes, gradient, plan.block, plan.taps, dtype, backend)
    parts += (measured_counts(plan),)
    return f"{'; '.join(map(str, parts))}; {torch.get_num_threads()} threads"


def _cache_file(device: torch.device) -> Path:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        processor = platform.processor() or platform.machine()
        name = f"{processor} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()} cores"
    return cache_path("layer-times", name, f"kernels{_sources()}")


@functools.cache
def _sources() -> str:
    """Return a digest of the kernels' code: other code takes other times."""
    files = sorted(Path(sparse_kernels.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def _read(path: Path) -> dict[str, list[float]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: [float(s) for s in seconds] for key, seconds in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        message = "measured times '%s' cannot be used and are measured again: %s"
        logging.getLogger(__name__).warning(message, path, error)
        return {}


def _keep(path: Path, found: Mapping[str, list[float]]) -> None:
    try:
        write_whole(path, {**_read(path), **found})
    except OSError as error:
        message = "measured times are not kept, so that a second run may decide otherwise: %s"
        logging.getLogger(__name__).warning(message, error)
