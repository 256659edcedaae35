"""A user's program that calls every public name, for `make types`; test_types.py runs it.

pyright looks at it in strict mode: a hint that is missing in the packages shows here as unknown.
"""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine import (
    DynamicSparsity,
    ErdosRenyi,
    GroupedMembers,
    GroupTopology,
    SparseConv2d,
    SparseLinear,
    TicketEnsemble,
    dense_state_dict,
    densify,
    draw_blocks,
    draw_by_fan_in,
    fuse,
    grasp_scores,
    group,
    load_safetensors,
    load_torch_export,
    orders,
    refresh,
    report,
    save_safetensors,
    snip_scores,
    sparsify,
    to_aten,
    to_rows,
    tune,
)
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.layers.attention import ProjectedAttention
from sparse_engine.runs.exported import save_dense, save_onnx, save_torch_export
from sparse_kernels import (
    BlockLayout,
    Norm,
    block_conv2d,
    block_conv2d_fused,
    block_linear,
    decompositions,
)

IMAGES, LABELS = torch.randn(4, 3, 6, 6), torch.arange(4)


def network() -> nn.Sequential:
    """Return a classifier of 4 classes."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip


def make_and_train() -> list[str]:
    """Train for two steps; return what is told of each layer."""
    model = network()
    batches = [(IMAGES, LABELS)]
    scores = snip_scores(model, batches)
    found = sparsify(model, 0.5, init=scores, block=(8, 8), skip=["5"])
    assert set(grasp_scores(network(), batches)) == set(scores)
    draw_by_fan_in(model)
    refresh(model)
    to_rows(model)
    print(found, orders(fuse(model), IMAGES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = copy.deepcopy(model)
    dynamic = DynamicSparsity(
        model, [optimizer], "rigl", 1, total_steps=4, averages=[average], process_group=False
    )
    F.cross_entropy(model(IMAGES), LABELS).backward()  # pyright: ignore[reportUnknownMemberType]
    changed: bool = dynamic.step()
    share: float = dynamic.exploration_rate()
    outcome: dict[str, str] = dynamic.last_update
    print(dynamic.is_armed, outcome)
    dynamic.load_state_dict(dynamic.state_dict())
    kept = dense_state_dict(model)
    try:
        densify(nn.Sequential(nn.LazyLinear(2)))
    except (InputError, RunFailure) as error:
        print(changed, share, len(kept), error)
    rows = report(model).rows
    densify(model)
    return [f"{row.name} {row.block} {row.density:.2f} {row.stored_bytes}" for row in rows]


def look_at_layers() -> tuple[nn.Conv2d, nn.Linear, nn.MultiheadAttention, float]:
    """Return the dense forms of layers, and a density."""
    layer = SparseConv2d(16, 32, 3, stride=2, padding=1, density=0.5, block="16x16", taps="all")
    linear = SparseLinear.from_dense(nn.Linear(32, 16), density=0.5, block=(8, 8))
    attention = ProjectedAttention(nn.MultiheadAttention(16, 2))
    mask: Tensor = layer.block_mask()
    y: Tensor = linear(layer(torch.randn(1, 16, 4, 4)).mean((2, 3)))
    seen, weights = attention.forward(y[None], y[None], y[None])
    print(mask.shape, layer.dense_weight().shape, layer.ran_on, layer.block, seen, weights)
    return layer.to_dense(), linear.to_dense(), attention.to_dense(), layer.density


def predict() -> Tensor:
    """Return the entropy of an ensemble's predictions."""
    members = [network().eval() for _ in range(2)]
    for member in members:
        sparsify(member, 0.5, "uniform", block=(8, 8), init="random")
    ensemble = TicketEnsemble(members)
    logits: Tensor = group(members)(IMAGES)
    assert torch.allclose(logits, ensemble.member_logits(IMAGES), atol=1e-5)
    probabilities, entropy, information = ensemble.uncertainty(IMAGES)
    logs: Tensor = ensemble.log_probabilities(IMAGES)
    print(len(ensemble), probabilities, ensemble(IMAGES), information, logs)
    return entropy


def train_members() -> Tensor:
    """Return the logits [M, N, K] of two networks after a step as one."""
    models = [network() for _ in range(2)]
    for model in models:
        sparsify(model, 0.5, ErdosRenyi(power=2.0), block=(8, 8), skip=["5"])
    grouped = GroupedMembers(models)
    optimizer = torch.optim.SGD(grouped.parameters(), lr=0.1)
    topology = GroupTopology(grouped, optimizer, "rigl", seeds=range(2))
    topology.arm()
    images = IMAGES.expand(2, -1, -1, -1, -1)
    grouped(images).square().mean().backward()
    topology.update(0.3)
    try:
        tiles = tune(models[0], IMAGES)
    except InputError as error:
        print(error)
    else:
        print(tiles)
    logits: Tensor = grouped(images)
    return logits


def call_kernels() -> tuple[Tensor, ...]:
    """Return the results of the operators on a layer of one block."""
    layout = BlockLayout((16, 16, 1, 1), (16, 16), torch.tensor([0]))
    values, x = torch.randn(1, 16, 16), torch.randn(2, 16, 3, 3)
    y = block_conv2d(x, values, layout, stride=1, padding=0)
    z = block_linear(x[..., 0, 0], values, layout)
    fused = block_conv2d_fused(x, values, layout)
    print(Norm, layout.mask().shape, layout.active, layout.density, fused)
    return y, z


def take_away(run: Path, folder: Path) -> nn.Module:
    """Write a network in every format; read one, and a run."""
    model, images = network().eval(), IMAGES
    sparsify(model, 0.5, block=(8, 8))
    draw_blocks(model.get_submodule("2"), folder / "blocks.png")
    save_safetensors(model, folder / "x.safetensors")
    save_dense(model, folder / "x.pt")
    save_torch_export(model, folder / "x.pt2", images)
    error: float | None = save_onnx(model, folder / "x.onnx", images)
    save_torch_export(model, folder / "y.pt2", images, dense=True)
    program = to_aten(torch.export.export(model, (images,)))
    print(program.graph, len(decompositions()))
    loaded: nn.Module = load_torch_export(folder / "x.pt2")
    print(error, loaded, TicketEnsemble.load(run, resident=False))
    return load_safetensors(folder / "x.safetensors", network())
