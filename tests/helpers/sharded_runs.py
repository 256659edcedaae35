"""Networks in training, cut up among processes by FSDP2 or whole in one, and how they compare."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from sparse_engine import DynamicSparsity, sparsify
from sparse_engine.layers.base import SparseLayer
from sparse_engine.models.build import build_model

STEPS, INTERVAL = 10, 3
SPARSIFY = {"snfs": {"headroom": 0.25}, "granet": {"start_sparsity": 0.4}}


class Net(nn.Module):
    """Layers of 19 slots, of 9, and of one: of fewer than there are processes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 32), nn.Linear(32, 17), nn.Linear(17, 8)
        self.is_checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 16] to [N, 8]."""
        x = self.first(x).relu()
        x = (
            checkpoint(self.second, x, use_reentrant=False)
            if self.is_checkpointed
            else self.second(x)
        )
        return self.last(x.relu())


def network(rule: str = "rigl", device: str = "cpu", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with torch.device(device):
        model = Net()
    block = {"last": (8, 9), "*": (4, 4)}
    sparsify(model, 0.6, "uniform", block, init="random", **SPARSIFY.get(rule, {}))
    return model


def blocks_at_first() -> list[list[int]]:
    layers = [m for m in network().modules() if isinstance(m, SparseLayer)]
    return [layer.layout.block_ids.tolist() for layer in layers]


def cut(model: nn.Module, mesh: DeviceMesh | None = None, **options) -> nn.Module:
    for part in (*model.children(), model):
        fully_shard(part, mesh=mesh, **options)
    return model


def batch(step: int, share: tuple[int, int] | None, size: int = 24) -> tuple[Tensor, Tensor]:
    """Return a batch, or the share of a process: its number, and that of all."""
    x = torch.randn(size, 16, generator=torch.Generator().manual_seed(step))
    y = x[:, :8].argmax(1)
    return (x, y) if share is None else (x.chunk(share[1])[share[0]], y.chunk(share[1])[share[0]])


class Run:
    """A network in training, sharded or by itself."""

    def __init__(
        self, model: nn.Module, rule: str = "rigl", mesh: DeviceMesh | None = None
    ) -> None:
        self.model = model
        self.is_sharded = any(hasattr(p, "device_mesh") for p in model.parameters())
        group = (mesh and mesh.get_group()) if self.is_sharded else False
        self.share = (dist.get_rank(group), dist.get_world_size(group)) if self.is_sharded else None
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        self.dynamic = DynamicSparsity(
            *(model, self.optimizer, rule, INTERVAL), total_steps=20, process_group=group
        )
        self.updates = 0

    def loss(self, step: int, part: int = 0, parts: int = 1) -> Tensor:
        x, y = batch(step, self.share)
        return F.cross_entropy(self.model(x.chunk(parts)[part]), y.chunk(parts)[part]) / parts

    def finish(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += self.dynamic.step()

    def train(self, first: int = 0, last: int = STEPS) -> "Run":
        for step in range(first, last):
            self.loss(step).backward()
            self.finish()
        return self

    def accumulate(self) -> "Run":
        """Add up two passes a step; those that are sharded recompute a layer, too."""
        self.model.is_checkpointed = self.is_sharded
        for step in range(STEPS):
            for part in (0, 1):
                if self.is_sharded:
                    self.model.set_requires_gradient_sync(part == 1)
                self.loss(step, part, 2).backward()
            self.finish()
        return self

    def throw_away(self) -> "Run":
        """Do passes whose gradients zero_grad throws away, as SAM's first are."""
        for step in range(STEPS):
            self.loss(step + 100).backward()
            self.optimizer.zero_grad(set_to_none=bool(step % 2))
            self.loss(step).backward()
            self.finish()
        return self

    def update_first(self) -> "Run":
        """Update before the optimizer's step, after a forward that leaves whole copies."""
        for step in range(STEPS):
            self.loss(step).backward()
            with torch.no_grad():
                self.loss(step)
            self.updates += self.dynamic.step()
            if self.is_sharded:
                self.model.reshard()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def found(self) -> tuple[list[list[int]], list[Tensor]]:
        """Return the blocks, and values, gradients' means and squares of all layers."""
        blocks, numbers = [], []
        for layer in (m for m in self.model.modules() if isinstance(m, SparseLayer)):
            state = self.optimizer.state[layer.values]
            blocks.append(layer.layout.block_ids.tolist())
            numbers += [whole(t) for t in (layer.values, state["exp_avg"], state["exp_avg_sq"])]
        return blocks, numbers


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach()


def compared(together: Run, alone: Run) -> list:
    """Return blocks, how often they were updated, whether equal, and how far numbers are apart."""
    blocks, numbers = together.found()
    own_blocks, own_numbers = alone.found()
    far = max(float((a - b).abs().max()) for a, b in zip(numbers, own_numbers, strict=True))
    return [blocks, together.updates, blocks == own_blocks, far]


def compared_large(name: str) -> list:
    """Compare 24 steps of a network for images, in float64: rounding exchanges no near-equals.

    Batch norms do not look at their batches, which differ in size.
    """

    def made() -> nn.Module:
        torch.manual_seed(0)
        if name == "resnet18":
            model = build_model("resnet18", classes=10, channels=3, height=32, width=32).eval()
        else:
            from torchvision.models import VisionTransformer

            model = VisionTransformer(32, 8, 3, 4, 64, 128, num_classes=10)
        sparsify(model.double(), 0.8, "erk", (8, 8))
        return model

    def run(model: nn.Module, share: tuple[int, int] | None) -> tuple[list, list, int]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        group = False if share is None else None
        options = {"total_steps": 32, "process_group": group}
        dynamic, updates = DynamicSparsity(model, optimizer, "rigl", 6, **options), 0
        for step in range(24):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(6, 3, 32, 32, generator=generator, dtype=torch.float64)
            y = torch.arange(6)
            if share is not None:
                x, y = x.chunk(share[1])[share[0]], y.chunk(share[1])[share[0]]
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            updates += dynamic.step()
        layers = [m for m in model.modules() if isinstance(m, SparseLayer)]
        blocks = [layer.layout.block_ids.tolist() for layer in layers]
        return blocks, [whole(layer.values) for layer in layers], updates

    blocks, values, updates = run(cut(made()), (dist.get_rank(), dist.get_world_size()))
    own_blocks, own_values, _ = run(made(), None)
    far = max(float((a - b).abs().max()) for a, b in zip(values, own_values))
    return [blocks, updates, blocks == own_blocks, far]
