"""Seconds that each layer takes by its density, measured on the device and kept on disk.

A measurement is forward and both gradients of one layer with random blocks, on the backend that
the run would take, in turn with the dense layer. Equal layers are measured once. What was measured
is kept by device, versions and source of the kernels in $SPARSE_ENGINE_CACHE
(~/.cache/sparse-engine), so that a second run decides as the first did.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from sparse_engine.errors import RunFailure
from sparse_engine.installed import require
from sparse_engine.layers.modules import SparseConv2d, SparseLinear
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.models.workload import LayerCall
from sparse_engine.sparsity.time_budget import TimeCurve
from sparse_kernels.dispatch.backend import choose_backend, forced_backend
from sparse_kernels.measurements import timings
from sparse_kernels.timing import CoreWait, disturbance, medians_in_turn

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
ROUNDS = 5
# How often a layer is measured at most until other programs leave it alone.
ATTEMPTS = 3
# A CPU's time grows in proportion to the images once its products are long enough.
CPU_POSITIONS = 4096


def measure_layer_times(
    plans: Sequence[LayerPlan],
    problems: Mapping[str, Sequence[LayerCall]],
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, TimeCurve]:
    """Return the curve of every layer, measured now or before.

    Args:
        plans: of all layers with every block active: their blocks and taps are those measured.
        problems: of layer_calls; times of several calls add up.
        model: dense, on the meta device; the layers measured are made after its own.
        device: where to measure.
        dtype: float32, or what autocast computes in.

    Raises:
        RunFailure: other programs run meanwhile, and several threads are timed.
    """
    require("measuring layers", "tqdm")
    from tqdm import tqdm

    kept = timings("layer-times", device)
    counts = {plan.name: measured_counts(plan) for plan in plans}
    wanted: dict[str, tuple[LayerPlan, LayerCall]] = {}
    keys: dict[str, list[str]] = {plan.name: [] for plan in plans}
    for plan in plans:
        for problem in problems[plan.name]:
            backends = chosen_backends(plan, problem, counts[plan.name], device, dtype)
            key = _key(plan, problem, dtype, counts[plan.name], backends)
            keys[plan.name].append(key)
            wanted[key] = plan, problem
    missing = [key for key in wanted if key not in kept.entries]
    for key in tqdm(missing, "timing layers", disable=None):
        plan, problem = wanted[key]
        module = model.get_submodule(plan.name)
        kept.add({key: measure(plan, problem, module, counts[plan.name], device, dtype)})
        kept.save()
    curves = {}
    for name, active in counts.items():
        calls = [kept.entries[key] for key in keys[name]]
        curves[name] = TimeCurve(active, tuple(map(sum, zip(*calls))) or (0.0,) * len(active))
    return curves


def measured_counts(plan: LayerPlan) -> tuple[int, ...]:
    """Return the numbers of active blocks that are measured: one (or one group) up to all."""
    groups = plan.total // plan.group
    between = {max(1, round(density * groups)) for density in DENSITIES}
    return tuple(plan.group * count for count in sorted({1, *between, groups}))


def chosen_backends(
    plan: LayerPlan,
    problem: LayerCall,
    counts: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> list[str]:
    """Return what a layer with so many active blocks, the last of them all, would run on."""
    sizes = (*plan.shape, 1, 1)[:4] + plan.block
    return [
        choose_backend(device, dtype, sizes, count / plan.total, problem.positions)
        for count in counts[:-1]
    ]


def measure(
    plan: LayerPlan,
    problem: LayerCall,
    module: nn.Module,
    counts: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    backends: Sequence[str] | None = None,
) -> list[float]:
    """Return the seconds of a step's work of a layer by its active blocks, the dense layer last.

    Args:
        plan, problem: of the layer.
        module: the layer, dense, on the meta device.
        counts: numbers of active blocks, the last of them all.
        device, dtype: see measure_layer_times.
        backends: of each number but the last; those that a run would choose unless said.

    Raises:
        RunFailure: other programs run meanwhile, and several threads are timed.
    """
    backends = backends or chosen_backends(plan, problem, counts, device, dtype)
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
        kind.from_dense(dense, layout=replace(plan, active=count).random(draw))
        for count in counts[:-1]
    ]
    passes = [
        _passes(layer, x, problem.input_gradient, backend)
        for layer, backend in zip((*layers, dense), (*backends, "auto"))
    ]
    seconds = _undisturbed(passes, device.type == "cuda")
    return [problem.sizes[0] / images * s for s in seconds]


def _undisturbed(passes: Sequence[Callable[[], object]], on_gpu: bool) -> list[float]:
    """Return median seconds, of which none were waited for a core: they are kept for good."""
    disturbed: str | None = None
    for _ in range(ATTEMPTS):
        wait = CoreWait(on_gpu)
        seconds = medians_in_turn(passes, ROUNDS, on_gpu)
        disturbed = disturbance(wait.share())
        if disturbed is None:
            return seconds
    raise RunFailure(
        f"timing layers: {disturbed}; wait until the machine is idle, or set OMP_NUM_THREADS=1, "
        "whose times are taken by this process's own clock"
    )


def _passes(
    layer: nn.Module, x: torch.Tensor, input_gradient: bool, backend: str
) -> Callable[[], object]:
    """Return forward and gradients of a layer on a backend as a function without arguments."""
    x = x.detach().requires_grad_(input_gradient)
    leaves = [*layer.parameters(), *([x] if input_gradient else [])]
    lower = x.dtype != torch.float32

    def forward() -> torch.Tensor:
        with torch.autocast(x.device.type, x.dtype if lower else None, enabled=lower):
            return layer(x)

    def run() -> object:
        with forced_backend(backend):
            return torch.autograd.grad(forward(), leaves, grad)

    with torch.no_grad(), forced_backend(backend):
        grad = torch.ones_like(forward())
    return run


def _key(
    plan: LayerPlan,
    problem: LayerCall,
    dtype: torch.dtype,
    counts: Sequence[int],
    backends: Sequence[str],
) -> str:
    """Return everything that a layer's times depend on besides the machine."""
    gradient = "input gradient" if problem.input_gradient else "no input gradient"
    runs = [f"{count} {backend}" for count, backend in zip(counts, (*backends, "dense"))]
    parts = (problem.layer, problem.sizes, gradient, plan.block, plan.taps, dtype, *runs)
    return f"{'; '.join(map(str, parts))}; {torch.get_num_threads()} threads"
