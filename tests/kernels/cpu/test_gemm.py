"""The gemm path: what is its own. That it equals the dense operators is in test_operators.py."""

import threading
import time

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.cpu import linear, threads
from sparse_kernels.dispatch.backend import VARIABLE, BackendError, check_backend, choose_backend
from sparse_kernels.dispatch.cost_model import gemm_ratio
from sparse_kernels.memory_order import ORDERS, in_order
from sparse_kernels.operators.convolution import conv2d

LAYER = (64, 48, 3, 3)
GEOMETRIES = [
    {"padding": 1},
    {"padding": 3, "stride": 2},
    {"padding": (0, 2), "stride": (3, 1), "dilation": (1, 3)},
    {"padding": 4, "stride": 2, "dilation": 3},
]


@pytest.fixture(autouse=True)
def path(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setenv(VARIABLE, "gemm")


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def number_of_threads(request, monkeypatch):
    """Share even the smallest work."""
    monkeypatch.setattr(threads, "LEAST_ROWS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make(shape=LAYER, block=(16, 16), density=0.3, dtype=torch.float64):
    whole = BlockLayout(shape, block, torch.arange(1))
    ids = torch.randperm(whole.total)[: max(1, round(density * whole.total))]
    layout = BlockLayout(shape, block, ids)
    values = torch.randn(layout.slots, *reversed(layout.block), dtype=dtype)
    return values.requires_grad_(), layout


def step(operator, x, values, layout, **geometry):
    """Return output and both gradients; the gradient of the output has the same numbers always."""
    x = x.detach().requires_grad_()
    y = operator(x, values, layout, **geometry)
    grad = torch.empty_like(y)
    grad.copy_(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    return [y, *torch.autograd.grad(y, (x, values), grad)]


def masked(monkeypatch, *arguments, **geometry):
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "masked")
        return step(*arguments, **geometry)


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


@pytest.mark.usefixtures("number_of_threads")
@pytest.mark.parametrize("rows", [1, 3, 4096])
def test_a_linear_layer_in_parts(monkeypatch, rows):
    monkeypatch.setattr(linear, "ROWS", rows)
    values, layout = make((50, 33))
    x = torch.randn(7, 33, dtype=torch.float64)
    found = step(block_linear, x, values, layout)
    for ours, theirs in zip(found, masked(monkeypatch, block_linear, x, values, layout)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


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


def test_as_many_threads_as_torch_has_and_each_of_one_core(number_of_threads):
    def look(share):
        names.add(threading.current_thread().name)
        time.sleep(0.05)
        return len(share), torch.get_num_threads()

    names = set()
    seen = threads.shared(look, torch.zeros(8), rows=8)
    lengths = {1: [8], 3: [3, 3, 2]}[number_of_threads]
    assert [length for length, _ in seen] == lengths
    assert len(names) == number_of_threads
    assert {cores for _, cores in seen} == {1}
    assert torch.get_num_threads() == number_of_threads
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [number_of_threads]


@pytest.mark.usefixtures("number_of_threads")
def test_a_failure_in_a_thread_is_raised():
    def fail(share):
        raise ValueError(f"share of {len(share)}")

    with pytest.raises(ValueError, match="share of"):
        threads.shared(fail, torch.zeros(9), rows=9)


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


def test_a_result_shares_no_memory_with_an_input():
    values, layout = make((32, 32), density=1)
    x = torch.randn(4, 32, dtype=torch.float64)
    before = x.clone()
    for order in ORDERS:
        images = in_order(x[:, :, None, None].repeat(1, 1, 2, 2), order)
        pointwise = BlockLayout((32, 32, 1, 1), (16, 16), layout.block_ids)
        for result in step(block_conv2d, images, values, pointwise):
            result.detach().zero_()
        assert images.any()
    for result in step(block_linear, x, values, layout):
        result.detach().zero_()
    assert x.equal(before)
    assert values.any()


def test_only_a_cpu_has_it():
    with pytest.raises(BackendError, match="backend 'gemm' runs on a CPU, found device 'cuda'"):
        check_backend("gemm", torch.device("cuda"))


@pytest.mark.parametrize("order", ORDERS)
def test_traced_results_lie_as_real_ones(order):
    values, layout = make()
    x = in_order(torch.randn(3, 48, 6, 5, dtype=torch.float64), order)
    arguments = [x, values.detach(), layout.tensors(), layout.sizes(), [1, 1], [1, 1], [1, 1]]
    real = conv2d(*arguments)
    with FakeTensorMode() as mode:
        fake = conv2d(*tree_map_only(torch.Tensor, mode.from_tensor, arguments))
    assert (fake.shape, fake.stride()) == (real.shape, real.stride())


WIDE = (256, 256, 3, 3, 32, 32)


def choose(sizes=WIDE, density=0.1, positions=8192, dtype=torch.float32):
    return choose_backend(torch.device("cpu"), dtype, sizes, density, positions)


def test_auto_takes_what_should_be_faster(monkeypatch):
    monkeypatch.setenv(VARIABLE, "auto")
    assert choose() == "gemm"
    assert choose(density=0.9) == "masked"
    assert choose(sizes=(256, 256, 3, 3, 8, 8), density=0.01) == "masked"
    assert choose(sizes=(1024, 1024, 1, 1, 16, 16), positions=16) == "masked"
    assert choose(sizes=(3, 3, 3, 3, 16, 16)) == "masked"
    assert choose(positions=None) == "masked"
    assert choose(density=0.3, dtype=torch.bfloat16) == "masked"
    monkeypatch.setenv(VARIABLE, "masked")
    assert choose() == "masked"


def test_the_expected_time_grows_with_density_and_falls_with_block_and_rows():
    def ratio(density=0.2, block=32, positions=1024):
        return gemm_ratio((256, 256, 3, 3, block, block), density, positions)

    for name, values in {"density": (0.1, 0.2, 0.4), "block": (64, 32, 16)}.items():
        found = [ratio(**{name: value}) for value in values]
        assert found == sorted(found)
        assert len(set(found)) == 3
    assert ratio(positions=64) > ratio(positions=1024) > ratio(positions=8192)
    assert ratio(positions=8192) == ratio(positions=10**6)


def test_auto_follows_the_number_of_threads(monkeypatch):
    monkeypatch.setenv(VARIABLE, "auto")
    small = {"sizes": (512, 512, 1, 1, 32, 32), "positions": 256}
    assert choose(**small) == "gemm"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)
        assert choose(**small) == "masked"
    finally:
        torch.set_num_threads(before)
