"""The L1 norm of a block of weights, or of its gradient, decides what is dropped and what grows."""

import pytest
import torch
from topologies import best_groups, weakest_slots
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear
from sparse_engine.sparsity.topology import Topology, contributions
from sparse_kernels import BlockLayout
from sparse_kernels.operators.reference import block_norms

# 2x2 blocks, of which the first has the largest L1 norm, and others the largest L2 norm and weight.
PATTERNS = ([[4.0, 4.0], [4.0, 4.0]], [[7.0, 7.0], [0.0, 0.0]], [[8.0, 0.0], [0.0, 0.0]])
RAGGED = (7, 5, 2, 3)


def naive_norms(dense, block):
    """Return the L1 norm of each block of a weight [O, C, R, S], by slicing, in order of ids."""
    bo, bc = block
    return torch.stack(
        [
            dense[o : o + bo, c : c + bc, r, s].abs().sum()
            for o in range(0, dense.shape[0], bo)
            for c in range(0, dense.shape[1], bc)
            for r in range(dense.shape[2])
            for s in range(dense.shape[3])
        ]
    )


def test_block_norms_equal_naive_ones():
    dense = torch.randn(RAGGED)
    found = block_norms(dense, [*RAGGED, 4, 2])
    torch.testing.assert_close(found, naive_norms(dense, (4, 2)))


def test_the_norm_decides_what_is_dropped():
    layout = BlockLayout((2, 8), (2, 2), torch.arange(3))  # the fourth block is not active
    layer = SparseLinear(8, 2, bias=False, layout=layout)
    with torch.no_grad():
        layer.values.copy_(torch.tensor(PATTERNS))
    Topology(nn.Sequential(layer), None, "set").update(0.67)
    assert layer.values.flatten(1).any(1).tolist() == [True, False, False]


def test_the_norm_decides_what_grows():
    layer = SparseLinear(8, 2, bias=False, layout=BlockLayout((2, 8), (2, 2), torch.tensor([3])))
    topology = Topology(nn.Sequential(layer), None, "rigl")
    topology.arm()
    weight = torch.cat([torch.tensor(p).T for p in PATTERNS] + [torch.zeros(2, 2)], 1)
    # The gradient of sum(weight * y) for the input of one row a column is the pattern itself.
    (layer(torch.eye(8)) * weight.T).sum().backward()
    topology.update(1.0)
    assert layer.layout.block_ids.tolist() == [0]


@pytest.mark.parametrize("kernel", [(2, 3), (3, 1), (1, 3), (5, 3)])
@pytest.mark.parametrize("taps", ["each", "row", "all"])
def test_rigl_equals_a_naive_update(taps, kernel):
    torch.manual_seed(0)
    layer = SparseConv2d(5, 7, kernel, density=0.5, block=(2, 2), taps=taps).double()
    topology = Topology(nn.Sequential(layer), None, "rigl")
    weight, group = layer.dense_weight().detach().requires_grad_(), layer.layout.group
    x = torch.randn(3, 5, 6, 6, dtype=torch.float64)
    topology.arm()
    layer(x).square().sum().backward()
    torch.nn.functional.conv2d(x, weight, layer.bias).square().sum().backward()

    def group_norms(dense):
        return naive_norms(dense, (2, 2)).view(-1, group).sum(1).tolist()

    active = layer.layout.group_ids.tolist()
    drop, grow = group_norms(weight.detach()), group_norms(weight.grad)
    slots = weakest_slots(layer.layout, [drop[b] for b in active], 0.4)
    dropped = [active[slot] for slot in slots]
    kept = set(active) - set(dropped)
    best = best_groups(layer.layout, grow, kept, dropped)
    topology.update(0.4)
    assert set(layer.layout.group_ids.tolist()) == kept | set(best)


def test_contributions_of_equal_gradients_are_equal_whatever_the_block():
    layers = {
        name: SparseLinear(16, 16, layout=BlockLayout((16, 16), (size, size), torch.arange(3)))
        for name, size in (("wide", 8), ("narrow", 2))
    }
    gradient = torch.full((16, 16, 1, 1), 0.25)
    scores = {n: block_norms(gradient, m.layout.sizes()) for n, m in layers.items()}
    found = contributions(layers, scores)
    assert found == pytest.approx({"wide": 0.25, "narrow": 0.25})


def test_a_new_topology_of_changed_layers_decides_as_before():
    model = nn.Sequential(SparseLinear(8, 2, density=0.5, block=(2, 2)))
    renewed = Topology(model, None, "rigl", 7).of(model, None)
    assert (renewed.rule, renewed.seed) == ("rigl", 7)
