"""Native kernels behind the operators: what is their own. That they are right is in operators/."""

import threading

import pytest
import torch
from native_cases import make, step
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.cpu import channel_vectors, pixel_vectors
from sparse_kernels.memory_order import ORDERS, in_order
from sparse_kernels.operators.convolution import conv2d


@pytest.mark.parametrize(
    ("block", "kernels"),
    [
        ((32, 16), ["channel", "channel", "channel"]),
        ((8, 4), ["pixel", "pixel", "pixel"]),
        ((32, 4), ["channel", "pixel", "channel"]),
        ((1, 16), ["pixel", "channel", "channel"]),
    ],
)
def test_the_width_of_what_a_pass_writes_decides(block, kernels, monkeypatch):
    taken = []
    for name, module in (("channel", channel_vectors), ("pixel", pixel_vectors)):
        for function in ("conv2d", "conv2d_input_grad", "conv2d_weight_grad"):
            real = getattr(module, function)
            monkeypatch.setattr(
                module, function, lambda *a, _n=name, _f=real: (taken.append(_n), _f(*a))[1]
            )
    values, layout = make(block=block)
    step(block_conv2d, torch.randn(2, 48, 5, 5), values, layout, padding=1)
    assert taken == kernels


@pytest.mark.usefixtures("number_of_threads")
@pytest.mark.parametrize("block", [(16, 16), (1, 1)])
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_an_update_in_place_is_seen_by_the_next_call(grad_mode, block):
    values, layout = make(density=0.1, block=block)
    x = torch.randn(2, 48, 6, 6)
    with grad_mode():
        for seed in range(4):
            total, generator = layout.total, torch.Generator().manual_seed(seed)
            layout.update_(torch.randperm(total, generator=generator)[: layout.slots])
            fresh = BlockLayout(layout.shape, layout.block, layout.block_ids.clone())
            found = block_conv2d(x, values, layout, padding=1)
            assert found.equal(block_conv2d(x, values, fresh, padding=1))


@pytest.mark.usefixtures("number_of_threads")
@pytest.mark.parametrize("block", [(16, 16), (2, 2)])
def test_users_threads_may_run_one_layer(block):
    values, layout = make(block=block)
    x = torch.randn(3, 48, 6, 6)
    wanted = step(block_conv2d, x, values, layout, padding=1)
    right = []

    def run():
        for _ in range(5):
            found = step(block_conv2d, x, values, layout, padding=1)
            right.append(all(a.equal(b) for a, b in zip(found, wanted)))

    running = [threading.Thread(target=run) for _ in range(3)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert right == [True] * 15


@pytest.mark.parametrize("block", [(16, 16), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype, block):
    """Sums are fp32: each gradient and output is off by its last rounding alone."""
    values, layout = make((32, 256, 3, 3), density=1, dtype=dtype, block=block)
    x = torch.randn(2, 256, 6, 6, dtype=dtype)
    found = step(block_conv2d, x, values, layout, padding=1)
    exact = step(
        block_conv2d, x.double(), values.detach().double().requires_grad_(), layout, padding=1
    )
    for ours, truth in zip(found, exact):
        error = (ours.double() - truth).norm() / truth.norm()
        assert error < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("block", [(16, 1), (1, 1)], ids=["channels", "pixels"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1, 0.3, 300, 1e-4])
def test_every_number_of_16_bits_is_read_and_written_as_pytorch_does(factor, dtype, block):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    layout = BlockLayout((16, 1, 1, 1), block, torch.arange(16 // block[0]))
    values = torch.full((layout.slots, *reversed(block)), factor, dtype=dtype)
    y = block_conv2d(numbers.view(1, 1, 256, 256), values, layout)
    right = (numbers.float() * values[0, 0, 0].float()).to(dtype).view(1, 1, 256, 256)
    torch.testing.assert_close(y, right.expand_as(y), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("order", ORDERS)
def test_traced_results_lie_as_real_ones(order):
    values, layout = make()
    x = in_order(torch.randn(3, 48, 6, 5), order)
    arguments = [x, values.detach(), layout.tensors(), layout.sizes(), [1, 1], [1, 1], [1, 1]]
    real = conv2d(*arguments)
    with FakeTensorMode() as mode:
        fake = conv2d(*tree_map_only(torch.Tensor, mode.from_tensor, arguments))
    assert (fake.shape, fake.stride()) == (real.shape, real.stride())


@pytest.mark.parametrize("block", [(16, 16), (8, 8)])
def test_a_result_shares_no_memory_with_an_input(block):
    values, layout = make((32, 32), density=1, block=block)
    x = torch.randn(4, 32)
    before = x.clone()
    for order in ORDERS:
        images = in_order(x[:, :, None, None].repeat(1, 1, 2, 2), order)
        pointwise = BlockLayout((32, 32, 1, 1), block, layout.block_ids)
        for result in step(block_conv2d, images, values, pointwise):
            result.detach().zero_()
        assert images.any()
    for result in step(block_linear, x, values, layout):
        result.detach().zero_()
    assert x.equal(before)
    assert values.any()
