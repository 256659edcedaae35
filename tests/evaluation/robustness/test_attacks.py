"""Attacks stay in their box, hurt a trained model, and find nothing where there is no gradient."""

import math

import pytest
import torch
from torch import nn

from sparse_engine.data.catalog import TABLE
from sparse_engine.data.load import load_dataset
from sparse_engine.errors import InputError
from sparse_engine.evaluation.robustness.attacks import (
    EnsembleLogits,
    fgsm,
    pgd,
    robust_accuracy,
)
from sparse_engine.evaluation.robustness.pixel_model import PixelModel, pixel_batches

INFO = TABLE["digits"]
EPSILON = 0.1


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", None)


@pytest.fixture(scope="module")
def members(data):
    """Return two small networks trained on digits for a moment, apart in seed alone."""
    return [PixelModel(train_network(data, seed), INFO) for seed in (0, 1)]


def train_network(data, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    pixels, labels = next(pixel_batches(data.train, INFO, 1437))
    x = (pixels - INFO.mean[0]) / INFO.std[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model


@pytest.fixture
def batch(data):
    return next(pixel_batches(data.test, INFO, 200))


def attacks_of(model, pixels, labels, epsilon=EPSILON, steps=10):
    generator = torch.Generator().manual_seed(0)
    return {
        "fgsm": fgsm(model, pixels, labels, epsilon),
        "pgd": pgd(model, pixels, labels, epsilon, steps, generator),
    }


@pytest.mark.parametrize("epsilon", [1 / 255, 0.3])
@pytest.mark.parametrize("steps", [1, 7])
def test_moved_images_stay_in_the_box_and_are_images(members, batch, epsilon, steps):
    pixels, labels = batch
    for moved in attacks_of(members[0], pixels, labels, epsilon, steps).values():
        assert (moved - pixels).abs().max() <= epsilon + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert not moved.requires_grad
        assert (moved != pixels).float().mean() > 0.3


def test_fgsm_moves_every_pixel_by_epsilon_up_the_loss(batch):
    pixels, labels = 0.3 + 0.4 * batch[0], batch[1]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    moved = fgsm(model, pixels, labels, 0.01)
    torch.testing.assert_close((moved - pixels).abs(), torch.full_like(pixels, 0.01))
    before, after = (
        nn.functional.cross_entropy(model(x), labels, reduction="none") for x in (pixels, moved)
    )
    assert (after > before).all()


def test_accuracy_falls_and_pgd_is_at_least_as_strong(members, batch):
    clean = [(member(batch[0]).argmax(1) == batch[1]).float().mean().item() for member in members]
    found = {
        name: robust_accuracy(members, [batch], name, EPSILON, steps=10) for name in ("fgsm", "pgd")
    }
    for target in range(2):
        by_itself = {name: result["matrix"][target][target] for name, result in found.items()}
        assert by_itself["pgd"] <= by_itself["fgsm"] < clean[target] - 0.1
    assert found["pgd"]["matrix"][2][2] <= found["fgsm"]["matrix"][2][2]


class Steps(nn.Module):
    """Logits that no gradient flows through, or that have none at all."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, pixels):
        means = pixels.flatten(1).mean(1, keepdim=True)
        logits = torch.cat([means, 1 - means], 1).expand(-1, 2)
        return logits.detach() if self.how == "detached" else (2 * logits).round()


@pytest.mark.parametrize("how", ["detached", "rounded"])
def test_a_model_without_gradient_is_unaffected(how):
    pixels = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(20, dtype=torch.int64)
    assert torch.equal(fgsm(Steps(how), pixels, labels, EPSILON), pixels)
    found = robust_accuracy([Constant([0.2, 0.8])], [(pixels, 1 - labels)], "pgd", EPSILON, 3)
    assert found["matrix"] == [[1.0]]


class Constant(nn.Module):
    """The same prediction for every image, on the CPU."""

    device = torch.device("cpu")

    def __init__(self, probabilities):
        super().__init__()
        self.logits = torch.tensor([probabilities]).log()

    def forward(self, pixels):
        return self.logits.expand(len(pixels), -1) + 0 * pixels.flatten(1)[:, :1]


def test_the_ensembles_logits_are_log_mean_probabilities(members, batch):
    logits = EnsembleLogits(members)(batch[0])
    mean = torch.stack([member(batch[0]).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(logits.exp(), mean)
    far = EnsembleLogits([TwoLogits(200.0), TwoLogits(-200.0)])(torch.zeros(1, 1, 1, 1))
    torch.testing.assert_close(far, torch.full((1, 2), -math.log(2)))


class TwoLogits(nn.Module):
    """Two logits that are `apart` from each other."""

    def __init__(self, apart):
        super().__init__()
        self.apart = apart

    def forward(self, pixels):
        return pixels.new_tensor([[self.apart, 0.0]]) + 0 * pixels.flatten(1)[:, :1]


def test_every_source_attacks_every_target(members, data):
    part = data.test.subset(torch.arange(90))
    stream = list(pixel_batches(part, INFO, 40))
    found = robust_accuracy(members, stream, "fgsm", EPSILON, 1)
    assert found["images"] == 90
    for row, source in enumerate([*members, EnsembleLogits(members)]):
        moved = torch.cat([fgsm(source, x, y, EPSILON) for x, y in stream])
        labels = torch.cat([y for _, y in stream])
        probabilities = torch.stack([member(moved).softmax(1) for member in members])
        everyone = [*probabilities, probabilities.mean(0)]
        wanted = [(p.argmax(1) == labels).double().mean().item() for p in everyone]
        assert found["matrix"][row] == pytest.approx(wanted)
    for target, summary in enumerate(found["targets"]):
        column = [row[target] for row in found["matrix"]]
        assert summary == pytest.approx(
            {"min": min(column), "mean": sum(column) / 3, "max": max(column)}
        )


def test_a_single_member_is_its_own_ensemble(members, batch):
    found = robust_accuracy(members[:1], [batch], "fgsm", EPSILON, 1)
    assert len(found["matrix"]) == len(found["targets"]) == 1


def test_pgd_is_repeatable(members, batch):
    first, again = (robust_accuracy(members, [batch], "pgd", EPSILON, 3) for _ in range(2))
    assert first == again


def test_no_images_are_refused():
    with pytest.raises(InputError, match="needs at least one batch"):
        robust_accuracy([PixelModel(nn.Flatten(), INFO)], [], "fgsm", EPSILON, 1)
