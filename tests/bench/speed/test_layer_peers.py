"""Peers compute the very layer that they are timed beside; a slim one has its FLOPs."""

import pytest
import torch

from bench.speed.correctness import LAYER_LIMITS, relative_error
from bench.speed.layer_peers import PEERS, WIDE, block_sparse_row_passes
from bench.speed.problems import Layer, make_problem, right_results
from bench.speed.variant import Unavailable

LINEAR = Layer("linear", (96, 64), (), 10, 10)
CONVOLUTION = Layer("3x3", (32, 16, 3, 3), (7, 7), 2, 2, stride=2)


# Of the others, one has other weights, one no convolutions, and one takes long to compile.
@pytest.mark.parametrize("name", ["dense bf16", "masked", "native"])
@pytest.mark.parametrize("layer", [LINEAR, CONVOLUTION], ids=lambda layer: layer.name)
def test_passes_are_right(name, layer):
    problem = make_problem(layer, (8, 8), 0.3, "cpu")
    right, passes = right_results(problem), PEERS[name](problem)
    if name == "dense bf16":
        right = {n: run() for n, run in PEERS["dense"](problem).items()}
    limit = LAYER_LIMITS["bf16" if "bf16" in name else "fp32"]
    assert list(passes) == list(right)
    for which, run in passes.items():
        assert relative_error(run().float(), right[which]) < limit


@pytest.mark.slow
def test_compiled_passes_are_right():
    problem = make_problem(CONVOLUTION, (8, 8), 0.3, "cpu")
    for which, run in PEERS["dense compiled"](problem).items():
        assert relative_error(run(), PEERS["dense"](problem)[which]()) < LAYER_LIMITS["fp32"]


@pytest.mark.parametrize("block", [(1, 1), (8, 8), (32, 32)])
def test_block_sparse_rows_are_right(block):
    problem = make_problem(LINEAR, block, 0.4, "cpu")
    right, passes = right_results(problem), block_sparse_row_passes(problem)
    for which in ("forward", "input gradient"):
        assert relative_error(passes[which](), right[which]) < LAYER_LIMITS["fp32"]
    expected = right["weight gradient"]
    if min(block) >= WIDE:  # multiplied one by one, in the order of BSR
        expected = expected[problem.layout.block_ids.argsort()].transpose(1, 2)
    assert relative_error(passes["weight gradient"](), expected) < LAYER_LIMITS["fp32"]


def test_block_sparse_rows_have_no_convolution_and_no_bf16():
    with pytest.raises(Unavailable, match="no convolution"):
        block_sparse_row_passes(make_problem(CONVOLUTION, (8, 8), 0.3, "cpu"))
    with pytest.raises(Unavailable, match="fp32 only"):
        block_sparse_row_passes(make_problem(LINEAR, (8, 8), 0.3, "cpu", torch.bfloat16))


def test_a_slim_layer_has_about_the_flops():
    layer = Layer("linear", (512, 256), (), 4, 4)
    passes = PEERS["slim"](make_problem(layer, (32, 32), 0.25, "cpu"))
    assert passes["weight gradient"]().shape == (256, 128)
