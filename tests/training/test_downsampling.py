"""Smaller images in some steps: which steps, which pixels, what it costs, and who cannot."""

import pytest
import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.errors import InputError
from sparse_engine.methods.resolve import resolve
from sparse_engine.training.costs import run_costs
from sparse_engine.training.downsampling import is_downsampled, some_smaller, training_flops
from sparse_engine.training.run import plan_phases


def test_steps_are_a_function_of_seed_and_step():
    chosen = [is_downsampled(0.3, 1, step) for step in range(4000)]
    assert chosen == [is_downsampled(0.3, 1, step) for step in range(4000)]
    assert 0.27 < sum(chosen) / 4000 < 0.33
    assert chosen != [is_downsampled(0.3, 2, step) for step in range(4000)]
    assert not any(is_downsampled(0.0, 1, step) for step in range(100))
    # A step that is small at one rate is small at any higher one.
    assert all(is_downsampled(0.5, 1, step) for step, small in enumerate(chosen) if small)


def test_pixels_are_means():
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).float()
    step = next(s for s in range(100) if is_downsampled(0.5, 0, s))
    with some_smaller(nn.Identity(), x, 0.5, 0, step) as y:
        assert y.shape == (2, 3, 2, 3)
        torch.testing.assert_close(y[..., 0, 0], x[..., :2, :2].mean((-1, -2)))
        torch.testing.assert_close(y[..., 1, 2], x[..., 2:, 4].mean(-1))
    with some_smaller(nn.Identity(), x, 0.0, 0, step) as y:
        assert y is x


def test_running_statistics_are_of_whole_images():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=0.3))
    x = torch.randn(4, 3, 6, 6) + 2
    steps = {is_downsampled(0.5, 0, step): step for step in range(20)}
    before = model[1].running_mean.clone()
    with some_smaller(model, x, 0.5, 0, steps[True]) as y:
        model(y)
    assert model[0].running_var.equal(torch.ones(3))
    assert model[1].running_mean.equal(before)
    assert (model[0].momentum, model[1].momentum) == (0.1, 0.3)
    with some_smaller(model, x, 0.5, 0, steps[False]) as y:
        model(y)
    torch.testing.assert_close(model[0].running_mean, 0.1 * x.mean((0, 2, 3)))


def test_flops_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    full = 2 * 4 * 27 * 64
    assert training_flops(model, (3, 8, 8), 0.0) == {"0": full, "3": 16}
    assert training_flops(model, (3, 8, 8), 0.4) == {"0": pytest.approx(0.7 * full), "3": 16}


def test_a_run_costs_less_by_the_share_of_its_steps():
    def train_flops(rate: float) -> float:
        config = resolve(Config(method="dense", model="wrn10-1", downsample_rate=rate))
        return run_costs(config, TABLE["digits"], plan_phases(config, 1437))["train_flops_ratio"]

    assert train_flops(0.0) == pytest.approx(1)
    assert 0.6 < train_flops(0.5) < 0.65


def test_a_model_of_one_image_size_is_refused():
    config = resolve(Config(method="dense", model="mlp", epochs=4, downsample_rate=0.5))
    with pytest.raises(InputError, match="cannot take images of 4x4, which --downsample-rate"):
        run_costs(config, TABLE["digits"], plan_phases(config, 1437))
