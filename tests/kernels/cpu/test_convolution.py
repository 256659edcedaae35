"""Convolution on the gemm path: what is its own. That it equals dense ones is in operators/."""

import threading

import pytest
import torch
from gemm_cases import make, masked, step
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from sparse_kernels import BlockLayout, block_conv2d
from sparse_kernels.cpu import linear
from sparse_kernels.memory_order import ORDERS, in_order
from sparse_kernels.operators.convolution import conv2d

GEOMETRIES = [
    {"padding": 1},
    {"padding": 3, "stride": 2},
    {"padding": (0, 2), "stride": (3, 1), "dilation": (1, 3)},
    {"padding": 4, "stride": 2, "dilation": 3},
]


@pytest.mark.usefixtures("number_of_threads")
@pytest.mark.parametrize("rows", [1, 40, 8192])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_any_number_of_images_at_a_time_in_any_order(monkeypatch, order, geometry, rows):
    monkeypatch.setattr(linear, "ROWS", rows)
    values, layout = make()
    x = in_order(torch.randn(5, 48, 9, 8, dtype=torch.float64), order)
    found = step(block_conv2d, x, values, layout, **geometry)
    for ours, theirs in zip(
        found, masked(monkeypatch, block_conv2d, x, values, layout, **geometry)
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for images in found[:2]:
        assert images.permute(ORDERS[order]).is_contiguous()


def test_pixels_far_apart_in_memory_do_not_meet():
    """A tap beside the image reads zeros: neither the next row of the image, nor the next image."""
    values, layout = make((16, 16, 1, 5), density=1)
    x = torch.zeros(2, 16, 4, 3, dtype=torch.float64)
    x[0, :, 1, 2] = 1
    y = block_conv2d(x, values.detach(), layout, padding=(0, 2))
    assert y[0, :, 1].all()
    y[0, :, 1] = 0
    assert not y.any()


@pytest.mark.usefixtures("number_of_threads")
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_an_update_in_place_is_seen_by_the_next_call(grad_mode):
    values, layout = make(density=0.1)
    x = torch.randn(2, 48, 6, 6, dtype=torch.float64)
    with grad_mode():
        for seed in range(4):
            total, generator = layout.total, torch.Generator().manual_seed(seed)
            layout.update_(torch.randperm(total, generator=generator)[: layout.slots])
            fresh = BlockLayout(layout.shape, layout.block, layout.block_ids.clone())
            found = block_conv2d(x, values, layout, padding=1)
            assert found.equal(block_conv2d(x, values, fresh, padding=1))


@pytest.mark.usefixtures("number_of_threads")
def test_users_threads_may_run_one_layer():
    values, layout = make()
    x = torch.randn(3, 48, 6, 6, dtype=torch.float64)
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


def test_numbers_outside_the_weight_are_never_read():
    """What a ragged block stores past the channels is multiplied by nothing, be it NaN."""
    values, layout = make((37, 21, 3, 3), density=0.5)
    x = torch.randn(2, 21, 5, 5, dtype=torch.float64)
    wanted = step(block_conv2d, x, values, layout, padding=1)
    with torch.no_grad():
        slots = layout.index.slots
        for slot, (out_block, in_block) in enumerate(zip(slots.out_block, slots.in_block)):
            values[slot, max(0, 21 - 16 * in_block) :] = torch.nan
            values[slot, :, max(0, 37 - 16 * out_block) :] = torch.nan
    assert values.isnan().any()
    for found, right in zip(step(block_conv2d, x, values, layout, padding=1), wanted):
        assert found.equal(right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    """Sums are fp32: of 144 blocks each gradient and output is off by its last rounding alone."""
    values, layout = make((32, 256, 3, 3), density=1, dtype=dtype)
    x = torch.randn(2, 256, 6, 6, dtype=dtype)
    found = step(block_conv2d, x, values, layout, padding=1)
    exact = step(
        block_conv2d, x.double(), values.detach().double().requires_grad_(), layout, padding=1
    )
    for ours, truth in zip(found, exact):
        error = (ours.double() - truth).norm() / truth.norm()
        assert error < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("order", ORDERS)
def test_traced_results_lie_as_real_ones(order):
    values, layout = make()
    x = in_order(torch.randn(3, 48, 6, 5, dtype=torch.float64), order)
    arguments = [x, values.detach(), layout.tensors(), layout.sizes(), [1, 1], [1, 1], [1, 1]]
    real = conv2d(*arguments)
    with FakeTensorMode() as mode:
        fake = conv2d(*tree_map_only(torch.Tensor, mode.from_tensor, arguments))
    assert (fake.shape, fake.stride()) == (real.shape, real.stride())
