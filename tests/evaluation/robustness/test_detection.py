"""Detection metrics against scikit-learn's."""

import pytest
import sklearn.metrics
import torch

from sparse_engine.evaluation.robustness.out_of_distribution import detection_metrics


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
