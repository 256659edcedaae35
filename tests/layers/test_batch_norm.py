"""Batch-norm statistics are those of the data, whatever they were, and nothing else changes."""

import pytest
import torch
from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.layers.batch_norm import estimate_batch_norm


@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_the_mean_over_batches(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.train(training)
    for _ in range(5):
        model(torch.randn(2, 3, 4, 4) + 9)
    batches = [torch.randn(8, 3, 4, 4) * scale + 2 for scale in (1, 2, 3)]
    weights = {n: p.clone() for n, p in model.named_parameters()}
    random = torch.get_rng_state()
    estimate_batch_norm(model, batches)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.allclose(model[0].running_mean, sum(b.mean((0, 2, 3)) for b in batches) / 3)
    assert torch.allclose(model[0].running_var, sum(b.var((0, 2, 3)) for b in batches) / 3)
    # The second norm sees what the first makes of a batch in training mode, and no dropout.
    normal = [nn.functional.batch_norm(b, None, None, training=True) for b in batches]
    inner = [model[2](b) for b in normal]
    expected = sum(b.mean((0, 2, 3)) for b in inner) / 3
    assert torch.allclose(model[3].running_mean, expected, atol=1e-6)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert model.training == training
    assert all(module.training == training for module in model.modules())
    assert [model[0].momentum, model[3].momentum] == [0.1, 0.1]


def test_a_model_without_batch_norm_is_not_run():
    estimate_batch_norm(nn.Linear(2, 2), iter(lambda: pytest.fail("a batch was drawn"), None))


def test_without_images_the_statistics_stay():
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(2, 3, 4, 4) + 9)
    before = norm.running_mean.clone()
    with pytest.raises(InputError, match="statistics need at least one batch of images"):
        estimate_batch_norm(norm, iter([]))
    assert torch.equal(norm.running_mean, before)
    assert norm.momentum == 0.1
    estimate_batch_norm(nn.Linear(1, 1), [])
