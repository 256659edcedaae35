"""Training steps of one network on a GPU that is not there: python -m fake_gpu.walk < WALKS.json

Reads a JSON list of walks, of one generation, and prints a JSON object for each. A walk takes two
steps, one step that collects dense gradients and one topology update.
"""

from __future__ import annotations

import collections
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

PROCESSES = 2  # that compile


@dataclass(frozen=True)
class Walk:
    """What is walked.

    network: of bench.speed.networks, another of the trainer's, or "vit-b-16".
    setup: "plain", "rows", "fused", or "grouped" (two members as one network, in rows).
    dtype: "bf16" or "fp16" (autocast), "tf32" or "fp32".
    backend: "auto" or "triton".
    """

    arch: int = 90
    network: str = "wrn28-10"
    setup: str = "fused"
    distribution: str = "uniform"
    block: str = "64x64"
    dtype: str = "bf16"
    batch: int = 128
    sparsity: float = 0.8
    backend: str = "auto"


@dataclass
class Found:
    """What a walk shows.

    step, armed, update: kernels by name, PyTorch's and ours.
    waits, copies: places where the host waited for the device or sent it something.
    moved: index lists that are others than before.
    layers: how many ran on what; masked: why a layer did not run on our kernels.
    specialisations: how many kernels the process has compiled so far.
    failed: kernels that do not compile, spill, or need more shared memory than there is.
    """

    walk: dict[str, Any]
    step: dict[str, int]
    armed: dict[str, int]
    update: dict[str, int]
    waits: list[str]
    copies: list[str]
    moved: list[str]
    layers: dict[str, int]
    masked: dict[str, str]
    specialisations: int
    failed: list[str]


def take(walk: Walk, gpu: Any) -> Found:
    """Take a walk on a fake_gpu.FakeGpu of its generation."""
    import torch

    from sparse_engine import DynamicSparsity
    from sparse_engine.layers.base import SparseLayer
    from sparse_engine.sparsity.topology import Topology

    os.environ["SPARSE_ENGINE_BACKEND"] = walk.backend
    torch.backends.cudnn.conv.fp32_precision = "tf32" if walk.dtype == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32" if walk.dtype == "tf32" else "ieee"
    model, topology_of, x, y = _made(walk)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    topology = (topology_of or Topology)(model, optimizer)
    step = _step(walk, model, optimizer, x, y)
    own = None
    if topology_of is None:  # a loop of one's own, with an average, waits no more than the trainer
        averages = [copy.deepcopy(model)]
        own = DynamicSparsity(model, optimizer, interval=1, averages=averages)
        own.topology.disarm()
    with _noting(gpu) as seen:
        step()
        for _ in range(2):  # the first one makes what is kept
            lists = _lists(model)
            seen["step"] = _kernels(gpu, step)
        seen["armed"] = _kernels(gpu, lambda: (topology.arm(), step()))
        seen["update"] = _kernels(gpu, lambda: topology.update(0.3))
        if own is not None:
            own.topology.arm()
            step()
            assert own.step()
        moved = [name for name, kept in _lists(model).items() if kept != lists[name]]
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    ran = collections.Counter(m.ran_on or "nothing" for m in layers.values())
    masked = {n: _reason(m, walk) for n, m in layers.items() if m.ran_on == "masked"}
    return Found(
        walk=asdict(walk),
        moved=moved,
        layers=dict(ran),
        masked=masked,
        specialisations=len(gpu.launches.sources),
        failed=_failures(gpu),
        **seen,
    )


def _made(walk: Walk) -> tuple[Any, Callable[..., Any] | None, Any, Any]:
    """Return the model, what makes its topology, and a batch."""
    import torch

    from bench.speed.networks import NETWORKS, Network, network_of
    from bench.speed.variant import Case
    from sparse_engine import fuse, to_rows
    from sparse_engine.models.grouped.members import GroupedMembers
    from sparse_engine.training.group_topology import GroupTopology

    if walk.network == "vit-b-16":
        network = Network("torchvision/vit_b_16", (3, 224, 224), walk.batch, walk.batch)
    else:
        network = NETWORKS.get(walk.network) or network_of(walk.network)
    case = Case(network, walk.sparsity, walk.distribution, walk.block)
    members = [
        case.model(seed).train().to("cuda", memory_format=torch.channels_last)
        for seed in range(2 if walk.setup == "grouped" else 1)
    ]
    shape = (walk.batch, *network.image)
    if walk.setup == "grouped":
        x = torch.randn(2, *shape, device="cuda")
        y = torch.randint(10, (2, walk.batch), device="cuda")
        together = GroupedMembers(members).train()

        def topology_of(model: Any, optimizer: Any) -> Any:
            return GroupTopology(model, optimizer, "rigl", range(2))

        return together, topology_of, x, y
    (model,) = members
    if walk.setup != "plain":
        to_rows(model)
    if walk.setup == "fused":
        fuse(model)
    x, y = torch.randn(shape, device="cuda"), torch.randint(10, (walk.batch,), device="cuda")
    return model, None, x, y


def _step(walk: Walk, model: Any, optimizer: Any, x: Any, y: Any) -> Callable[[], None]:
    import torch
    import torch.nn.functional as F

    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(walk.dtype)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", lower, enabled=lower is not None):
            logits = model(x)
            loss = F.cross_entropy(logits.flatten(0, -2), y.flatten())
        loss.backward()
        optimizer.step()

    return step


def _kernels(gpu: Any, run: Callable[[], Any]) -> dict[str, int]:
    gpu.tape.kernels.clear()
    run()
    return dict(gpu.tape.kernels)


@contextmanager
def _noting(gpu: Any) -> Iterator[dict[str, Any]]:
    """Yield a dict that gets the waits and copies of what is inside."""
    seen: dict[str, Any] = {}
    gpu.tape.waits.clear()
    gpu.tape.copies.clear()
    yield seen
    seen["waits"] = sorted(set(gpu.tape.waits))
    seen["copies"] = sorted(set(gpu.tape.copies))


def _lists(model: Any) -> dict[str, tuple[int, ...]]:
    """Return which tensors hold the index lists of each layer."""
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "layout")}
    return {n: tuple(id(t) for t in m.layout.tensors()) for n, m in layers.items()}


def _reason(layer: Any, walk: Walk) -> str:
    """Return why `auto` did not take our kernels for a layer."""
    from sparse_kernels.dispatch.backend import KERNEL_BLOCKS
    from sparse_kernels.dispatch.cost_model import break_even_density

    if not all(size in KERNEL_BLOCKS for size in layer.block):
        return f"block {layer.block} has no kernel"
    limit = break_even_density(walk.arch, layer.block)
    if layer.density > limit:
        return f"density {layer.density:.2f} above break-even {limit}"
    return "unknown"


def _failures(gpu: Any) -> list[str]:
    if gpu.launches.compiler is None:
        return []
    before = dict(gpu.launches.compiler.failed)
    try:
        gpu.launches.finish()
    except RuntimeError:
        failed = gpu.launches.compiler.failed
        return [problem for key, problem in failed.items() if key not in before]
    return []


def main() -> None:
    """Take the walks of standard input."""
    import fake_gpu

    walks = [Walk(**fields) for fields in json.load(sys.stdin)]
    (arch,) = {walk.arch for walk in walks}
    gpu = fake_gpu.install(arch, PROCESSES)
    for walk in walks:
        print(json.dumps(asdict(take(walk, gpu))), flush=True)


if __name__ == "__main__":
    main()
