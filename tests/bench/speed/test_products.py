"""The share of a step that convolution and linear layers take."""

import torch
from torch import nn

from bench.speed.networks import TINY
from bench.speed.products import shares_of_products
from bench.speed.steps import Step
from bench.speed.variant import Case, Variant


def test_what_is_no_product_does_not_count():
    x = torch.randn(1000)
    assert shares_of_products(lambda: x.exp().sum(), 2) == [0, 0]


def test_products_are_the_most_of_a_step_of_nothing_else():
    layer, x = nn.Linear(512, 512), torch.randn(512, 512)
    (share,) = shares_of_products(lambda: layer(x).sum().backward(), 1)
    assert 0.5 < share < 1


def test_a_product_inside_ours_counts_once():
    for kind in ("native", "masked", "dense"):
        step = Step(Case(TINY, 0.8, "uniform", "16x16"), Variant(kind), "cpu")
        step.run()
        assert all(0.05 < share < 1 for share in shares_of_products(step.run, 2))
