"""Weights that an update has broken are told of, with the layer that shows it first."""

import math

import pytest
import torch
from torch import nn

from sparse_engine.training.finite import broken_member

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def member():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Softmax(-1))


def found_in(members, images=lambda: X):
    with torch.no_grad():
        predicted = [model(X) for model in members]
    return broken_member(members, predicted, images)


def test_sound_members_need_no_images():
    assert found_in([member(), member()], images=pytest.fail) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_layer_of_the_broken_member_is_named(value):
    sound, broken = member(), member()
    with torch.no_grad():
        broken[2].bias[0] = value
    found = found_in([sound, broken]).format(7)
    assert found == "predictions are not finite at step 7; first layer with such an output: 2"
    assert not broken.training


def test_broken_images_are_told_apart():
    broken, x = member(), X.clone()
    with torch.no_grad():
        broken[0].bias[0] = math.nan
    x[0, 0] = math.inf
    assert found_in([broken], lambda: x).endswith(": the input images")
