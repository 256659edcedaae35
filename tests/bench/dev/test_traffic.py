"""Bytes that blocks move, counted: what the documents say of fused ones is what they do."""

from argparse import Namespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.dev import traffic
from sparse_engine import fuse, sparsify, to_rows
from sparse_engine.models.resnet import BasicBlock, Bottleneck
from sparse_engine.models.wide_resnet import PreActivationBlock

BLOCKS = {
    "pre-activation": lambda: PreActivationBlock(64, 64, 1, 0.0),
    "basic": lambda: BasicBlock(64, 64, 1),
    "bottleneck": lambda: Bottleneck(256, 64, 1),
}


def passes(network: nn.Module, depth: int) -> list[float]:
    """Return what forward and backward of `depth` blocks move, in images that the first reads."""
    channels = network[0].conv1.in_channels
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(256, channels, 32, 32).requires_grad_()
        with traffic.Traffic() as forward:
            y = network[:depth](x)
        gradient = torch.empty_like(y)
        with traffic.Traffic() as backward:
            torch.autograd.grad(y, [x, *network[:depth].parameters()], gradient)
    return [found.total() / traffic.size(x) for found in (forward, backward)]


@pytest.mark.parametrize(
    ("name", "eager", "fused"),
    [
        ("pre-activation", (17, 27), (5, 17)),
        ("basic", (17, 27), (7, 21)),
        ("bottleneck", (13.5, 21), (6, 17)),
    ],
)
def test_passes_over_activations_of_a_block(name, eager, fused, triton_backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # fake tensors need no GPU where there is one
    for expected, sparse in ((eager, False), (fused, True)):
        network = nn.Sequential(*(BLOCKS[name]() for _ in range(3)))
        if sparse:
            sparsify(network, 0.8, "uniform", (32, 32))
            fuse(to_rows(network))
        third = [a - b for a, b in zip(passes(network, 3), passes(network, 2))]
        assert third == pytest.approx(expected, abs=0.03)


def test_the_rows(monkeypatch):
    options = Namespace(model="wrn10-1", batch=8, image=32, sparsity=0.9, block=32, operators=True)
    for name in (traffic.VARIABLE, "TRITON_INTERPRET"):
        monkeypatch.setenv(name, "")  # restored afterwards
    rows = list(traffic.rows(options))
    networks = [row for row in rows if not row[0].startswith("- ")]
    assert [row[0] for row in networks] == ["dense, eager", "sparse", "sparse, fused"]
    assert float(networks[2][3]) < float(networks[1][3])
    assert {len(row) for row in rows} == {len(traffic.COLUMNS)}
    assert "- convolution" in {row[0] for row in rows}


def test_what_is_expanded_is_counted_once():
    assert traffic.size(torch.ones(3, 1).expand(3, 5)) == 12
    assert traffic.size("no tensor") == 0
