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
from sparse_engine.config.config import Dtype
from sparse_engine.errors import InputError, ReplacedLayerWarning, RunFailure, UnreadableFile
from sparse_engine.evaluation.metrics import (
    CalibrationBins,
    accuracy,
    brier_score,
    calibration_bins,
    classification_metrics,
    disagreement,
    expected_calibration_error,
    kl_divergence,
    negative_log_likelihood,
)
from sparse_engine.layers.attention import ProjectedAttention
from sparse_engine.layers.other_kinds import SparseConv1d, SparseTransposedLinear
from sparse_engine.layers.report import LayerRow, Report
from sparse_engine.runs.ensemble import Uncertainty
from sparse_engine.runs.exported import save_dense, save_onnx, save_torch_export
from sparse_engine.sparsity.distribution import Sparsity
from sparse_engine.sparsity.erdos_renyi import DISTRIBUTIONS, DistributionName
from sparse_engine.sparsity.sparsify import Init
from sparse_engine.sparsity.update_schedule import DropSchedule, UpdateRule
from sparse_engine.training.group_topology import GroupRule
from sparse_kernels import (
    BlockLayout,
    Norm,
    block_conv2d,
    block_conv2d_fused,
    block_linear,
    decompositions,
)
from sparse_kernels.dispatch.backend import Backend, BackendError, forced_backend
from sparse_kernels.layout import TAPS, Taps

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
    print([SparseConv2d(16, 16, 3, taps=taps).taps for taps in TAPS])
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
    mean = ensemble(IMAGES)
    print(len(ensemble), probabilities, mean.argmax(1), information.mean(), logs)
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
    grouped(images).square().mean().backward()  # pyright: ignore[reportUnknownMemberType]
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


def train_by_others(rule: UpdateRule = "rigl") -> list[DynamicSparsity | None]:
    """Return what callbacks of other people's trainers have made so far."""
    from sparse_engine.integrations import lightning, transformers

    first = lightning.DynamicSparsityCallback(rule, total_steps=100, schedule="constant")
    second = transformers.DynamicSparsityCallback(rule, interval=10)
    return [first.dynamic, second.dynamic]


def score(probabilities: Tensor) -> dict[str, float]:
    """Return metrics of predictions [4, 4], by each distribution's name."""
    plans = [Sparsity(0.5, name).plans({"0": (64, 64)})[0].active for name in DISTRIBUTIONS]
    bins: CalibrationBins = calibration_bins(probabilities, LABELS)
    return {
        **classification_metrics(probabilities, LABELS),
        "blocks": float(sum(plans)),
        "accuracy": accuracy(probabilities, LABELS),
        "nll": negative_log_likelihood(probabilities, LABELS),
        "brier": brier_score(probabilities, LABELS),
        "ece": expected_calibration_error(probabilities, LABELS),
        "least": bins.accuracy.min().item(),
        "differs": disagreement(probabilities, probabilities),
        "kl": kl_divergence(probabilities, probabilities),
    }


def by_name(
    backend: Backend = "masked",
    taps: Taps = "all",
    spread: DistributionName = "er",
    init: Init = "random",
    rule: GroupRule = "set",
    schedule: DropSchedule = "constant",
    dtype: Dtype = "bf16",
) -> str:
    """Choose by names that are kept in variables; return what the layers ran on."""
    model = nn.Sequential(nn.Conv1d(8, 8, 3), nn.Flatten(), nn.Linear(32, 8))
    found: Report = sparsify(model, 0.5, spread, block=(4, 4), taps=taps, init=init)
    try:
        with forced_backend(backend):
            uncertain: Uncertainty = TicketEnsemble([model]).uncertainty(torch.randn(2, 8, 6))
    except (BackendError, UnreadableFile, ReplacedLayerWarning) as error:
        return str(error)
    rows: tuple[LayerRow, ...] = report(model).rows
    print(found.density, uncertain.entropy, rule, schedule, dtype)
    print(SparseConv1d(8, 8, 3, block=(4, 4)), SparseTransposedLinear(8, 8, block=(4, 4)))
    return " ".join(row.runs_on for row in rows)


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
