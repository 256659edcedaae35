"""SNIP and GraSP against their definitions, and networks cut by one ranking of all layers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_engine import sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.sparsity.saliency import SCORES, grasp_scores, saliency_batches, snip_scores


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(12, 20, 3),
        nn.Flatten(),
        nn.Linear(20 * 4, 10),
    )


def some_batches(count=2, shape=(3, 4, 4), dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, *shape, generator=generator, dtype=dtype), torch.arange(6))
        for _ in range(count)
    ]


def smooth_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 6)).double()


def flat_loss(model, batches, temperature=1.0):
    """Return the mean loss as a function of both weights in one vector, and that vector."""
    first, second = model[0].weight, model[2].weight

    def loss(vector):
        a, b = vector[: first.numel()].view_as(first), vector[first.numel() :].view_as(second)
        losses = [
            F.cross_entropy((torch.tanh(x @ a.T) @ b.T + model[2].bias) / temperature, y)
            for x, y in batches
        ]
        return sum(losses) / len(losses)

    return loss, torch.cat([first.flatten(), second.flatten()]).detach()


def test_snip_is_gradient_times_weight():
    model, batches = smooth_network(), some_batches(3, (4,), torch.float64)
    loss, weights = flat_loss(model, batches)
    gradient = torch.autograd.functional.jacobian(loss, weights)
    found = snip_scores(model, batches)
    expected = (gradient * weights).abs()
    torch.testing.assert_close(torch.cat([found["0"].flatten(), found["2"].flatten()]), expected)


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_weight_times_hessian_gradient_product(temperature):
    model, batches = smooth_network(), some_batches(3, (4,), torch.float64)
    loss, weights = flat_loss(model, batches, temperature)
    gradient = torch.autograd.functional.jacobian(loss, weights)
    hessian = torch.autograd.functional.hessian(loss, weights)
    found = grasp_scores(model, batches, temperature=temperature)
    expected = weights * (hessian @ gradient)
    torch.testing.assert_close(torch.cat([found["0"].flatten(), found["2"].flatten()]), expected)


@pytest.mark.parametrize("start", SCORES)
def test_scoring_leaves_everything_as_it_was(start):
    model = network().eval()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, again = (SCORES[start](model, some_batches()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    assert list(first) == ["0", "4", "6"]
    assert all(first[n].equal(again[n]) and not first[n].requires_grad for n in first)


@pytest.mark.parametrize("start", SCORES)
@pytest.mark.parametrize(
    ("block", "taps"), [((4, 4), "each"), ((4, 4), "row"), ((4, 4), "all"), ((1, 1), "each")]
)
def test_the_highest_scores_of_the_whole_network_stay(start, block, taps):
    model = network()
    scores = SCORES[start](model, some_batches())
    sparsify(model, 0.7, block=block, init=scores, taps=taps)
    stored, all_weights, kept, dropped = 0.0, 0, [], []
    for name, shape in (("0", (12, 3, 3, 3)), ("4", (20, 12, 3, 3)), ("6", (10, 80))):
        layer, weights = model.get_submodule(name), scores[name].numel()
        all_weights += weights
        if not isinstance(layer, SparseLayer):
            stored += weights
            continue
        padded = torch.zeros(*(-(-n // b) * b for n, b in zip(shape, block)), *shape[2:])
        padded[: shape[0], : shape[1]] = scores[name]
        blocks = padded.unflatten(0, (-1, block[0])).unflatten(2, (-1, block[1])).sum((1, 3))
        if taps != "each" and len(shape) == 4:
            dims = (3,) if taps == "row" else (2, 3)
            blocks = blocks.sum(dims, keepdim=True).expand_as(layer.block_mask())
        blocks = blocks * blocks.numel() / weights
        mask = layer.block_mask()
        assert mask.any()
        if mask.sum() > layer.layout.group:
            kept.append(blocks[mask].min().item())
        dropped.append(blocks[~mask].max().item())
        stored += layer.density * weights
    largest = 16 * {"each": 1, "row": 3, "all": 9}[taps] if block == (4, 4) else 1
    assert 0.3 * all_weights - largest < stored <= 0.3 * all_weights + 1e-6
    assert len(dropped) >= 2
    if block == (1, 1):
        assert min(kept) >= max(dropped)


def test_scores_that_do_not_fit():
    model = network()
    scores = snip_scores(model, some_batches())
    for change, message in (
        ({"4": scores["4"][1:]}, r"layer '4' has scores \[19, 12, 3, 3\].*shape \[20, 12, 3, 3\]"),
        ({"4": scores["4"] * torch.nan}, "should be finite"),
    ):
        with pytest.raises(InputError, match=message):
            sparsify(model, 0.5, init={**scores, **change})
    del scores["6"]
    with pytest.raises(InputError, match="layer '6' has no scores"):
        sparsify(model, 0.5, init=scores)
    with pytest.raises(InputError, match="leave start_sparsity out"):
        sparsify(model, 0.5, init=scores, start_sparsity=0.1)
    assert not any(isinstance(m, SparseLayer) for m in model.modules())


def test_skipped_layers_need_no_scores_and_full_ones_stay_ordinary():
    model = network()
    scores = {name: torch.ones_like(s) for name, s in snip_scores(model, some_batches()).items()}
    scores["0"] *= 1000
    del scores["6"]
    sparsify(model, 0.5, block=(4, 4), skip=["6"], init=scores)
    assert type(model[0]) is nn.Conv2d
    assert isinstance(model[4], SparseLayer)
    assert type(model[6]) is nn.Linear


class Loader:
    batch_size = 30

    def batch(self, step):
        return torch.tensor(step), None


def test_a_start_gets_ten_images_a_class():
    assert [int(x) for x, _ in saliency_batches("snip", Loader(), 10)] == [0, 1, 2, 3]
    assert len(saliency_batches("grasp", Loader(), 2)) == 1
    assert saliency_batches("random", Loader(), 10) == []


@pytest.mark.parametrize("start", sorted(SCORES))
def test_no_batches_are_refused(start):
    with pytest.raises(InputError, match="scores need at least one batch"):
        SCORES[start](network(), [])
