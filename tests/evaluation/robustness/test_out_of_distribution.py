"""Foreign images fitted to a model, and the scores that tell them apart."""

import itertools

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

from sparse_engine.data.load import load_dataset
from sparse_engine.errors import InputError
from sparse_engine.evaluation.robustness.out_of_distribution import (
    detection,
    detection_metrics,
    foreign_set,
    match_channels,
    scores,
)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", None)


def save_arrays(folder, name, shape, test=6):
    """Write an own data set whose test images are shape [`test`, *shape]."""
    generator = np.random.default_rng(0)
    arrays = {
        f"{split}_images": generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        for split, count in (("train", 4), ("test", test))
    }
    labels = {f"{k}_labels": np.arange(n) % 2 for k, n in (("train", 4), ("test", test))}
    np.savez(folder / f"{name}.npz", **arrays, **labels)
    return arrays["test_images"]


def test_equal_shapes_are_shown_as_they_are(digits, tmp_path):
    images = save_arrays(tmp_path, "own", (1, 8, 8))
    found = foreign_set("own", digits, str(tmp_path), 4, 0)
    assert (found.name, found.matched, found.count) == ("own", "as they are", 6)
    pixels = torch.cat([batch for batch, _ in found.stream])
    torch.testing.assert_close(pixels, torch.from_numpy(images).float() / 255)


def test_other_shapes_are_fitted_and_it_is_said(digits, tmp_path):
    images = save_arrays(tmp_path, "own", (3, 16, 16))
    found = foreign_set("own", digits, str(tmp_path), 4, 0)
    assert found.matched == "16x16 resized to 8x8, 3 channels made 1"
    pixels = torch.cat([batch for batch, _ in found.stream])
    assert pixels.shape == (6, 1, 8, 8)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    gray = (torch.from_numpy(images).float() / 255 * weights).sum(1)
    assert pixels.mean().item() == pytest.approx(gray.mean().item(), abs=0.01)


def test_a_folder_of_pictures_is_cut_and_made_gray(digits, tmp_path):
    for split, kind in itertools.product(("train", "val"), ("cat", "dog")):
        folder = tmp_path / split / kind
        folder.mkdir(parents=True)
        Image.new("RGB", (30, 20), (255, 0, 0)).save(folder / "red.png")
    found = foreign_set(f"imagefolder:{tmp_path}", digits, None, 4, 0)
    assert (found.matched, found.count) == ("pictures cut to 8x8, 3 channels made 1", 2)
    ((pixels, _),) = found.stream
    torch.testing.assert_close(pixels, torch.full((2, 1, 8, 8), 0.299))


def test_noise_is_repeatable_and_has_the_moments_it_says(digits):
    first, again = (
        torch.cat([pixels for pixels, _ in foreign_set("noise", digits, None, 100, 0).stream])
        for _ in range(2)
    )
    assert first.shape == digits.test.images.shape
    assert torch.equal(first, again)
    assert first.mean().item() == pytest.approx(0.5, abs=0.01)
    assert first.std().item() == pytest.approx(0.25, abs=0.02)


def test_channels():
    one, four = torch.rand(2, 1, 3, 3), torch.rand(2, 4, 3, 3)
    assert torch.equal(match_channels(one, 3), one.repeat(1, 3, 1, 1))
    assert torch.equal(match_channels(four, 3), four[:, :3])
    assert match_channels(four, 1).shape == (2, 1, 3, 3)
    with pytest.raises(InputError, match="images of 3 channels cannot be shown to a model of 4"):
        match_channels(four[:, :3], 4)


def test_scores_by_hand():
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])
    found = scores(logits)
    assert found["confidence"].item() == pytest.approx(-0.5)
    assert found["entropy"].item() == pytest.approx(np.log(2))
    assert found["energy"].item() == pytest.approx(-np.log(np.exp(2) + 1))


def test_scores_of_certain_members_are_finite():
    found = scores(torch.tensor([[[1000.0, 0.0], [0.0, 0.0]]]))
    assert found["entropy"].tolist() == pytest.approx([0, np.log(2)])
    assert all(values.isfinite().all() for values in found.values())


def test_images_without_a_clear_class_are_found():
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(2, 200, 5, generator=generator)
    own[:, :, 0] += 8
    foreign = torch.randn(2, 100, 5, generator=generator)
    found = detection(own, foreign)
    assert len(found["members"]) == 2
    for score in ("confidence", "entropy", "energy"):
        assert found[score]["auroc"] > 0.95
        alone = detection(own[1:], foreign[1:])[score]
        assert found["members"][1][score] == alone


def draw(seed, own=150, foreign=90, levels=None):
    """Return scores that overlap; with `levels` only so many different values, so ties."""
    generator = torch.Generator().manual_seed(seed)
    scores = [
        torch.randn(own, generator=generator),
        1 + torch.randn(foreign, generator=generator),
    ]
    return [(s * levels).round() if levels else s for s in scores]


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("sizes", [(150, 90), (20, 400), (7, 1), (1, 19)])
def test_equals_scikit_learn(sizes, levels):
    own, foreign = draw(0, *sizes, levels)
    truth = [0] * len(own) + [1] * len(foreign)
    scores = torch.cat([own, foreign]).numpy()
    rates = sklearn.metrics.roc_curve(truth, scores, drop_intermediate=False)
    found = detection_metrics(own, foreign)
    assert found == pytest.approx(
        {
            "auroc": sklearn.metrics.roc_auc_score(truth, scores),
            "aupr": sklearn.metrics.average_precision_score(truth, scores),
            "fpr95": next(wrong for wrong, right, _ in zip(*rates) if right >= 0.95),
        },
        abs=1e-12,
    )


def test_extremes():
    low, high = torch.arange(10.0), torch.arange(10.0) + 10
    assert detection_metrics(low, high) == {"auroc": 1, "aupr": 1, "fpr95": 0}
    found = detection_metrics(high, low)
    assert (found["auroc"], found["fpr95"]) == (0, 1)
    assert detection_metrics(torch.zeros(5), torch.zeros(5))["auroc"] == 0.5


@pytest.mark.parametrize(
    ("own", "foreign", "message"),
    [
        (torch.zeros(0), torch.zeros(3), "not empty"),
        (torch.zeros(3), torch.zeros(3, 1), r"not of shape \[3, 1\]"),
        (torch.zeros(3), torch.tensor([0, torch.nan]), "must be finite"),
    ],
)
def test_bad_scores(own, foreign, message):
    with pytest.raises(ValueError, match=message):
        detection_metrics(own, foreign)
