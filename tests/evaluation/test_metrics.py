"""Metrics against other libraries, against hand-computed cases, and by their properties."""

import math

import numpy
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_engine.evaluation import metrics

torchmetrics_functional = pytest.importorskip("torchmetrics.functional.classification")


def predictions(seed: int, samples: int = 200, classes: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    return logits.softmax(1), labels


def binary(confidences: list[float], right: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two-class predictions of class 0 with these confidences, and labels."""
    confidence = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([confidence, 1 - confidence], 1), 1 - torch.tensor(right).long()


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_equals_torchmetrics(seed):
    probabilities, labels = predictions(seed)
    theirs = torchmetrics_functional.multiclass_accuracy(
        probabilities, labels, num_classes=5, average="micro"
    )
    assert metrics.accuracy(probabilities, labels) == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("bins", [10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_torchmetrics(seed, bins):
    probabilities, labels = predictions(seed)
    theirs = torchmetrics_functional.multiclass_calibration_error(
        probabilities, labels, num_classes=5, n_bins=bins, norm="l1"
    )
    ours = metrics.expected_calibration_error(probabilities, labels, bins)
    assert ours == pytest.approx(theirs.item(), abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_likelihood_equals_torch_and_scikit_learn(seed):
    probabilities, labels = predictions(seed)
    exact = probabilities.double()
    ours = metrics.negative_log_likelihood(exact, labels)
    assert ours == pytest.approx(torch.nn.functional.nll_loss(exact.log(), labels).item())
    normalised = (exact / exact.sum(1, keepdim=True)).numpy()
    theirs = sklearn.metrics.log_loss(labels.numpy(), normalised, labels=range(5))
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_two_class_brier_score_is_twice_scikit_learns():
    probabilities, labels = predictions(0, classes=2)
    positive = probabilities[:, 1].double().numpy()
    theirs = sklearn.metrics.brier_score_loss(labels.numpy(), positive)
    assert metrics.brier_score(probabilities, labels) == pytest.approx(2 * theirs, abs=1e-6)


def test_brier_score_equals_its_definition_in_numpy():
    probabilities, labels = predictions(1)
    targets = numpy.eye(5)[labels.numpy()]
    wanted = ((probabilities.double().numpy() - targets) ** 2).sum(1).mean()
    assert metrics.brier_score(probabilities, labels) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("confidences", "right", "bins", "wanted"),
    [
        # One bin: accuracy 1/2, confidence .975. Torchmetrics gives 1 a bin of its own.
        ([0.95, 1.0], [True, False], 10, 0.475),
        ([1.0, 1.0], [True, True], 15, 0.0),
        ([1.0], [False], 15, 1.0),
        # .7 is the lower edge of [.7, .8): gaps .3 and .65, not |1/2 - .675|.
        ([0.65, 0.7], [False, True], 10, (0.65 + 0.3) / 2),
        ([0.7, 0.75], [False, True], 10, abs(0.5 - 0.725)),
        # 11/15 opens a bin, although torch.linspace(0, 1, 16) puts that edge a rounding higher.
        ([11 / 15, 0.74], [False, True], 15, abs(0.5 - (11 / 15 + 0.74) / 2)),
        ([0.55, 0.95], [True, False], 1, abs(0.5 - 0.75)),
    ],
)
def test_calibration_error_by_hand(confidences, right, bins, wanted):
    probabilities, labels = binary(confidences, right)
    ours = metrics.expected_calibration_error(probabilities, labels, bins)
    assert ours == pytest.approx(wanted, abs=1e-12)


def test_calibration_bins_by_hand():
    counts, right, confidence = metrics.calibration_bins(
        *binary([0.65, 0.7, 0.9], [False, True, True]), bins=4
    )
    assert counts.tolist() == [0, 0, 2, 1]
    assert right.tolist() == [0, 0, 0.5, 1]
    assert confidence.tolist() == pytest.approx([0, 0, 0.675, 0.9])


def test_likelihood_of_the_impossible_is_finite():
    ours = metrics.negative_log_likelihood(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert ours == pytest.approx(-math.log(numpy.finfo(numpy.float64).tiny))


def test_diversity_by_hand():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    q = torch.tensor([[0.75, 0.25], [0.2, 0.8]], dtype=torch.float64)
    first = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    second = 0.9 * math.log(0.9 / 0.2) + 0.1 * math.log(0.1 / 0.8)
    assert metrics.kl_divergence(p, q) == pytest.approx((first + second) / 2)
    assert metrics.disagreement(p[1:], q[1:]) == 1.0
    assert metrics.disagreement(p, p) == 0.0


def test_divergence_with_zeros():
    certain, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.25, 0.75]])
    assert metrics.kl_divergence(certain, other) == pytest.approx(math.log(4))
    assert math.isfinite(metrics.kl_divergence(other, certain))


def test_pairwise_is_the_mean_over_ordered_pairs():
    members = torch.stack([predictions(seed)[0] for seed in range(3)])
    pairs = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]
    wanted = sum(metrics.kl_divergence(members[i], members[j]) for i, j in pairs) / 6
    matrix = metrics.pairwise_matrix(metrics.kl_divergence, members)
    assert metrics.mean_of_pairs(matrix) == pytest.approx(wanted)
    assert [matrix[i][i] for i in range(3)] == [0.0] * 3
    assert matrix[2][0] == metrics.kl_divergence(members[2], members[0]) != matrix[0][2]


def test_mean_probabilities():
    members = torch.stack([predictions(seed)[0] for seed in range(3)])
    mean = metrics.mean_probabilities(members)
    assert mean.dtype == torch.float64
    torch.testing.assert_close(mean, (members[0] + members[1] + members[2]).double() / 3)


def test_classification_metrics_are_floats_by_short_name():
    probabilities, labels = predictions(0)
    result = metrics.classification_metrics(probabilities, labels)
    assert result == {
        "accuracy": metrics.accuracy(probabilities, labels),
        "nll": metrics.negative_log_likelihood(probabilities, labels),
        "ece": metrics.expected_calibration_error(probabilities, labels, bins=15),
        "brier": metrics.brier_score(probabilities, labels),
    }
    assert all(type(value) is float for value in result.values())


def test_logarithms_say_the_same_as_probabilities():
    probabilities, labels = predictions(0)
    p, q, logs = probabilities.double(), predictions(1)[0].double(), probabilities.double().log()
    assert metrics.classification_metrics(logs, labels, log=True) == pytest.approx(
        metrics.classification_metrics(p, labels)
    )
    for function in (metrics.kl_divergence, metrics.disagreement):
        assert function(logs, q.log(), log=True) == pytest.approx(function(p, q))
    mean = metrics.mean_log_probabilities(torch.stack([logs, q.log()]))
    torch.testing.assert_close(mean.exp(), (p + q) / 2)


def test_logarithms_are_exact_where_probabilities_underflow():
    logs, labels = torch.tensor([[0.0, -1000.0], [-math.inf, 0.0]]), torch.tensor([1, 1])
    assert metrics.negative_log_likelihood(logs, labels, log=True) == 500
    other = torch.tensor([[0.0, -2000.0], [-1000.0, 0.0]])
    assert metrics.kl_divergence(logs, other, log=True) == 0
    assert metrics.kl_divergence(logs.flip(1), other, log=True) == 1500


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        (torch.tensor([[2.0, 1.0]]), r"row 0 sum to 10\.1073; were logits passed\?$"),
        (torch.tensor([[math.nan, 0.0]]), "must not be nan"),
        (torch.tensor([[math.inf, 0.0]]), "must not be nan or infinitely large"),
        (torch.tensor([0.0]), r"log-probabilities must be \[N, K\]"),
    ],
)
def test_bad_logarithms(logs, message):
    with pytest.raises(ValueError, match=message):
        metrics.negative_log_likelihood(logs, torch.tensor([0]), log=True)


def test_half_precision_is_computed_in_float64():
    probabilities, labels = predictions(0)
    half = probabilities.bfloat16()
    assert metrics.brier_score(half, labels) == metrics.brier_score(half.double(), labels)


seeds = st.integers(0, 2**31)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 30), st.integers(2, 6), st.integers(1, 20))
def test_calibration_error_is_a_fraction_whatever_the_order(seed, samples, classes, bins):
    probabilities, labels = predictions(seed, samples, classes)
    error = metrics.expected_calibration_error(probabilities, labels, bins)
    assert 0 <= error <= 1
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    permuted = metrics.expected_calibration_error(probabilities[order], labels[order], bins)
    assert permuted == pytest.approx(error, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, seeds, st.integers(1, 30), st.integers(2, 6))
def test_divergence_is_zero_for_equals_and_never_negative(seed, other_seed, samples, classes):
    p, q = (predictions(s, samples, classes)[0].double() for s in (seed, other_seed))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    assert metrics.kl_divergence(p, p) == 0
    assert metrics.kl_divergence(p, q) >= -1e-12
    assert metrics.disagreement(p, q) == metrics.disagreement(q, p)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 30), st.integers(2, 6))
def test_scores_keep_their_ranges_whatever_the_classes_order(seed, samples, classes):
    probabilities, labels = predictions(seed, samples, classes)
    scores = metrics.classification_metrics(probabilities, labels)
    assert 0 <= scores["accuracy"] <= 1
    assert 0 <= scores["brier"] <= 2
    assert scores["nll"] >= -1e-6
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    renamed = metrics.classification_metrics(probabilities[:, order], order.argsort()[labels])
    assert renamed == pytest.approx(scores, abs=1e-12)


GOOD = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (GOOD[0], LABELS, r"must be \[N, K\] and not empty, not of shape \[2\]$"),
        (GOOD[:0], LABELS[:0], r"must be \[N, K\] and not empty, not of shape \[0, 2\]$"),
        (GOOD, LABELS[:1], r"labels must have shape \[2\], not \[1\]$"),
        (GOOD, LABELS[:, None], r"labels must have shape \[2\], not \[2, 1\]$"),
        (GOOD, LABELS.float(), r"labels must be integers, not torch\.float32$"),
        (GOOD, LABELS + 1, r"labels must lie in \[0, 2\), not \[1, 2\]$"),
        (GOOD, LABELS - 1, r"labels must lie in \[0, 2\), not \[-1, 0\]$"),
        (GOOD / 0, LABELS, r"finite and not negative; were logits passed\?$"),
        (GOOD * torch.nan, LABELS, r"finite and not negative; were logits passed\?$"),
        (-GOOD, LABELS, r"finite and not negative; were logits passed\?$"),
        (1.01 * GOOD, LABELS, r"sum to 1, those of row 0 sum to 1\.01; were they normalised\?$"),
        (GOOD * torch.tensor([[1.0], [0.5]]), LABELS, r"those of row 1 sum to 0\.5; were"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        metrics.accuracy,
        metrics.negative_log_likelihood,
        metrics.expected_calibration_error,
        metrics.brier_score,
        metrics.classification_metrics,
    ],
)
def test_bad_predictions(function, probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        function(probabilities, labels)


@pytest.mark.parametrize("function", [metrics.disagreement, metrics.kl_divergence])
def test_bad_pairs(function):
    with pytest.raises(ValueError, match=r"differ in shape: \[2, 2\] and \[1, 2\]$"):
        function(GOOD, GOOD[:1])
    with pytest.raises(ValueError, match="finite and not negative"):
        function(GOOD, GOOD / 0)
    with pytest.raises(ValueError, match="not empty"):
        function(GOOD[:0], GOOD[:0])
    with pytest.raises(ValueError, match="sum to 2"):
        function(GOOD, 2 * GOOD)


def test_bad_members_and_bins():
    with pytest.raises(ValueError, match=r"must be \[M, N, K\] and not empty, not of shape"):
        metrics.mean_probabilities(GOOD)
    with pytest.raises(ValueError, match=r"pairs need at least 2 members, not 1$"):
        metrics.mean_of_pairs(metrics.pairwise_matrix(metrics.disagreement, GOOD[None]))
    with pytest.raises(ValueError, match=r"bins must be at least 1, not 0$"):
        metrics.expected_calibration_error(GOOD, LABELS, bins=0)
