"""Our passes over a layer give what the dense library's give."""

import pytest
import torch

from bench.speed.correctness import relative_error
from bench.speed.problems import (
    Layer,
    block_sparse_rows,
    make_problem,
    peers,
    right_results,
    sparse_passes,
)

LAYERS = (
    Layer("3x3", (32, 16, 3, 3), (6, 6), 2, 2),
    Layer("3x3, every second pixel", (32, 16, 3, 3), (7, 7), 2, 2, stride=2),
    Layer("1x1, every second pixel", (32, 16, 1, 1), (6, 6), 2, 2, stride=2),
    Layer("3x3, strips", (32, 16, 3, 3), (6, 6), 2, 2, taps="row"),
    Layer("linear", (32, 16), (), 8, 8),
)


@pytest.mark.parametrize("backend", ["masked", "native"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_passes_agree(layer, backend):
    problem = make_problem(layer, (16, 16), 0.5, "cpu")
    assert problem.layout.active == problem.layout.total // 2
    right = right_results(problem)
    for order in ("channels_last", "rows"):
        for name, run in sparse_passes(problem, order, backend).items():
            assert relative_error(run(), right[name]) < 1e-5


def test_one_block_is_always_stored():
    problem = make_problem(LAYERS[-1], (16, 16), 0.01, "cpu")
    assert (problem.layout.active, problem.positions) == (1, 8)


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
def test_peers_compute_the_same_layer():
    problem = make_problem(LAYERS[-1], (16, 16), 0.5, "cpu")
    assert list(peers(problem)) == []  # on a GPU only
    name, forward, right = block_sparse_rows(problem)
    torch.testing.assert_close(forward(), right)
    assert name == "torch BSR"
