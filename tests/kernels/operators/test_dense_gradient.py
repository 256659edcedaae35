"""DenseGradientProbe against the block norms of the dense weight's gradient."""

import pytest
import torch
import torch.nn.functional as F

from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.operators.dense_gradient import DenseGradientProbe

CONVOLUTIONS = {
    "plain": ((32, 32, 3, 3), {"padding": 1}),
    "strided": ((32, 16, 3, 3), {"stride": (2, 1), "padding": (1, 0)}),
    "dilated": ((16, 16, 3, 2), {"dilation": (2, 3), "padding": 2}),
    "ragged": ((21, 37, 3, 3), {"stride": 2}),
    "same, even kernel": ((16, 16, 2, 2), {"padding": "same"}),
}


def norms(dense, block):
    """Return the L1 norm of every block of a weight [O, C, R, S], by slicing."""
    bo, bc = block
    found = [
        dense[o : o + bo, c : c + bc, r, s].abs().sum()
        for o in range(0, dense.shape[0], bo)
        for c in range(0, dense.shape[1], bc)
        for r in range(dense.shape[2])
        for s in range(dense.shape[3])
    ]
    return torch.stack(found)


def make(shape, dtype=torch.float32, image=(8, 7)):
    """Return an input, values, a layout of a third of the blocks, and a probe."""
    torch.manual_seed(0)
    total = BlockLayout(shape, (16, 16), torch.arange(1)).total
    layout = BlockLayout(shape, (16, 16), torch.randperm(total)[: -(-total // 3)])
    values = torch.randn(layout.slots, 16, 16, dtype=dtype, requires_grad=True)
    x = torch.randn(4, shape[1], *(image if len(shape) == 4 else ()), dtype=dtype)
    return x, values, layout, DenseGradientProbe(layout, values)


def dense_norms(x, y, shape, grad, **geometry):
    """Return the scores that autograd gives for a dense weight; the loss is (y * grad).sum()."""
    weight = torch.zeros(shape, dtype=x.dtype, requires_grad=True)
    dense = F.linear(x, weight) if len(shape) == 2 else F.conv2d(x, weight, **geometry)
    assert dense.shape == y.shape
    (gradient,) = torch.autograd.grad(dense, weight, grad)
    return norms(gradient.reshape(*shape[:2], *(shape[2:] or (1, 1))), (16, 16)).float()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_scores_of_a_convolution(name, dtype):
    shape, geometry = CONVOLUTIONS[name]
    x, values, layout, probe = make(shape, dtype)
    y = block_conv2d(x, values, layout, probe=probe, **geometry)
    assert y.equal(block_conv2d(x, values, layout, **geometry))
    grad = torch.randn_like(y)
    y.backward(grad)
    torch.testing.assert_close(probe.scores, dense_norms(x, y, shape, grad, **geometry))
    assert probe.leaf.grad is None


@pytest.mark.parametrize("shape", [(32, 48), (21, 37)])
@pytest.mark.parametrize("leading", [(), (2, 3), None])
def test_scores_of_a_linear_layer(shape, leading):
    x, values, layout, probe = make(shape)
    x = x[0] if leading is None else x.expand(*leading, *x.shape)
    y = block_linear(x, values, layout, probe=probe)
    grad = torch.randn_like(y)
    y.backward(grad)
    torch.testing.assert_close(probe.scores, dense_norms(x, y, shape, grad))


def test_a_layer_used_twice_has_the_norm_of_the_sum():
    shape = (16, 32, 3, 3)
    x, values, layout, probe = make(shape)
    first = block_conv2d(x, values, layout, probe=probe)
    second = block_conv2d(x.flip(3), values, layout, probe=probe)
    grads = torch.randn_like(first), torch.randn_like(second)
    ((first * grads[0]).sum() + (second * grads[1]).sum()).backward()
    both, grad = torch.cat([x, x.flip(3)]), torch.cat(grads)
    wanted = dense_norms(both, torch.cat([first, second]), shape, grad)
    torch.testing.assert_close(probe.scores, wanted)
    parts = sum(dense_norms(i, first, shape, g) for i, g in zip((x, x.flip(3)), grads))
    assert (parts > 1.1 * wanted).all()


def test_two_backward_passes_add_their_scores():
    x, values, layout, probe = make((32, 48))
    y = block_linear(x, values, layout, probe=probe)
    y.sum().backward(retain_graph=True)
    once = probe.scores.clone()
    y.sum().backward()
    torch.testing.assert_close(probe.scores, 2 * once)


@pytest.mark.parametrize("shape", [(21, 37, 3, 3), (21, 37)])
def test_scores_under_compile(shape):
    x, values, layout, probe = make(shape)
    called = block_conv2d if len(shape) == 4 else block_linear
    compiled = torch.compile(
        lambda x, values: called(x, values, layout, probe=probe),
        fullgraph=True,
        backend="aot_eager",
    )
    y = compiled(x, values)
    grad = torch.randn_like(y)
    y.backward(grad)
    torch.testing.assert_close(probe.scores, dense_norms(x, y, shape, grad))
    wanted = torch.autograd.grad(called(x, values, layout), values, grad)[0]
    torch.testing.assert_close(values.grad, wanted)


@pytest.mark.parametrize("shape", [(21, 37, 3, 3), (21, 37)])
def test_scores_under_autocast(shape):
    x, values, layout, probe = make(shape)
    called = block_conv2d if len(shape) == 4 else block_linear
    with torch.autocast("cpu", torch.bfloat16):
        y = called(x, values, layout, probe=probe)
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted = dense_norms(x.bfloat16(), y, shape, grad)
    assert probe.scores.dtype == torch.float32
    torch.testing.assert_close(probe.scores, wanted, rtol=2**-8, atol=0)


def test_scores_come_where_neither_input_nor_values_need_a_gradient():
    x, values, layout, probe = make((32, 48))
    y = block_linear(x, values.detach(), layout, probe=probe)
    y.sum().backward()
    torch.testing.assert_close(probe.scores, dense_norms(x, y, (32, 48), torch.ones_like(y)))


def test_a_probe_costs_one_number_until_backward():
    _, _, _, probe = make((320, 480, 3, 3))
    assert probe.leaf.shape == (320, 480, 3, 3)
    assert probe.leaf.untyped_storage().nbytes() == 4
    assert probe.leaf.grad is None
    assert probe.scores is None
