"""Other libraries' products are of the same layer."""

import pytest
import torch

from bench.speed import peers, problems


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
def test_peers_compute_the_same_layer():
    layer = problems.Layer("linear", (64, 32), (), 8, 8)
    problem = problems.make_problem(layer, (16, 16), 0.5, "cpu")
    assert list(peers.peers(problem)) == []  # on a GPU only
    name, forward, right = peers.block_sparse_rows(problem)
    torch.testing.assert_close(forward(), right)
    assert name == "torch BSR"
