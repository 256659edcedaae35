"""Native kernels with vectors over channels, against the dense operator in float64."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from drawn_convolutions import draw_convolution, guarded, guards_are_whole

from sparse_kernels import BlockLayout
from sparse_kernels.cpu import channel_vectors as native
from sparse_kernels.cpu.library import SOURCE
from sparse_kernels.cpu.native import linear, linear_input_grad, linear_weight_grad
from sparse_kernels.memory_order import ORDERS, order_of

EPSILON = torch.finfo(torch.float32).eps
UNIT = ((1, 1), (1, 1), (1, 1))


def passes(convolution):
    """Return y, dx and dvalues, None where a pass has no vectors; results were NaN before."""
    index, sizes, geometry = convolution.lists
    x, values, bias = convolution.x, convolution.values, convolution.bias
    y, dx = (
        guarded(t.shape, order_of(t), float("nan"), t.dtype)
        for t in (convolution.grad, convolution.x)
    )
    calls = {
        "forward": lambda: native.conv2d(x, values, bias, y, index, sizes, geometry),
        "input_grad": lambda: native.conv2d_input_grad(
            convolution.grad, values, dx, index, sizes, geometry
        ),
        "weight_grad": lambda: native.conv2d_weight_grad(
            x, convolution.grad, index, sizes, geometry
        ),
    }
    found = []
    for name, call in calls.items():
        if native.supports(sizes, name):
            found.append(call())
        else:
            found.append(None)
            with pytest.raises(NotImplementedError, match=name):
                call()
    assert guards_are_whole(y)
    assert guards_are_whole(dx)
    return found


def check(convolution, floor=EPSILON):
    """Compare with float64: twice the error of the dense layer, and a floor for sums of a few."""
    exact, dense = convolution.dense(), convolution.dense(torch.float32)
    for found, right, single in zip(passes(convolution), exact, dense):
        if found is None:
            continue
        scale = right.norm()
        error, allowed = (found - right).norm(), (single - right).norm()
        assert error <= 2 * allowed + floor * scale, (error / scale, allowed / scale)
    outside = convolution.layout.outside()
    if found is not None and outside is not None:
        assert not found[outside].any()


def test_drawn_geometries_equal_dense_ones():
    for seed in range(200):
        check(draw_convolution(seed))


def test_rows_longer_than_a_chunk():
    for seed in range(12):
        check(draw_convolution(seed, (16, 32), most_channels=40, longest=(3, 3000)))


def test_tensors_of_other_sizes_are_refused():
    layout = BlockLayout((32, 32, 3, 3), (16, 16), torch.arange(9))
    x, values, sizes = torch.randn(1, 32, 4, 4), torch.randn(9, 16, 16), layout.sizes()
    lists = layout.tensors()
    for operands in (
        (x[:, :16], values, None, x, lists),
        (x, values[:8], None, x, lists),
        (x, values, torch.zeros(31), x, lists),
        (x, values, None, x, [t[:-1] for t in lists]),
        (x, values, None, x, [t.long() for t in lists]),
    ):
        with pytest.raises(ValueError, match="found"):
            native.conv2d(*operands, sizes, UNIT)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_thousands_of_drawn_geometries_equal_dense_ones(part):
    for seed in range(1000 * part, 1000 * (part + 1)):
        convolution = draw_convolution(10_000 + seed, most_channels=300 if seed % 4 == 0 else 140)
        check(convolution, floor=2 * EPSILON)


def test_results_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        for seed in range(25):
            convolution = draw_convolution(seed, sides=(16, 32, 48))
            results = []
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                results.append(passes(convolution))
            for others in results[1:]:
                for one, other in zip(results[0], others):
                    assert one.equal(other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [(7,), (2, 3, 5), (1, 300), (3, 500), (0,)], ids=str)
def test_linear_layers_of_any_number_of_rows(rows):
    torch.manual_seed(0)
    mask = torch.rand(3, 5) < 0.5
    layout = BlockLayout.from_mask(mask, (75, 150), (32, 32))
    index, sizes = layout.tensors(), layout.sizes()
    values = torch.randn(layout.slots, 32, 32).masked_fill_(layout.outside(), float("nan"))
    weight = torch.zeros(96, 160)
    for value, (o, c) in zip(values, mask.nonzero().tolist()):
        weight[32 * o : 32 * o + 32, 32 * c : 32 * c + 32] = value.T
    weight = weight[:75, :150].double()
    x, grad, bias = guarded((*rows, 150)), guarded((*rows, 75)), torch.randn(75)
    y = linear(x, values, bias, index, sizes)
    torch.testing.assert_close(y.double(), x.double() @ weight.T + bias, rtol=1e-5, atol=1e-4)
    dx = linear_input_grad(grad, values, index, sizes)
    torch.testing.assert_close(dx.double(), grad.double() @ weight, rtol=1e-5, atol=1e-4)
    dvalues = linear_weight_grad(x, grad, index, sizes)
    dense = grad.double().flatten(0, -2).T @ x.double().flatten(0, -2)
    dense = torch.nn.functional.pad(dense, (0, 10, 0, 21))
    for found, (o, c) in zip(dvalues, mask.nonzero().tolist()):
        block = dense[32 * o : 32 * o + 32, 32 * c : 32 * c + 32].T
        torch.testing.assert_close(found.double(), block, rtol=1e-5, atol=1e-3)


def test_gradients_outside_the_weight_are_zero_whatever_the_images_hold():
    layout = BlockLayout((20, 20, 1, 1), (16, 16), torch.arange(4))
    lists = layout.tensors(), layout.sizes(), ((1, 1), (0, 0), (1, 1))
    x = torch.full((1, 20, 2, 2), float("inf"))
    dvalues = native.conv2d_weight_grad(x, torch.full_like(x, float("nan")), *lists)
    assert not dvalues[layout.outside()].any()
    assert dvalues[~layout.outside()].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_single_rounded(dtype):
    """Of the same numbers, in every bit: nothing is rounded but the results."""
    for seed in range(30):
        convolution = draw_convolution(seed)
        operands = ("x", "values", "grad") + ("bias",) * (convolution.bias is not None)
        for name in operands:
            single = getattr(convolution, name)
            order = order_of(single) if single.ndim == 4 else None
            setattr(convolution, name, guarded(single.shape, order, single, dtype))
        halves = passes(convolution)
        for name in operands:
            setattr(convolution, name, getattr(convolution, name).float())
        for found, single in zip(halves, passes(convolution)):
            if found is not None:
                assert found.dtype == dtype
                torch.testing.assert_close(found, single.to(dtype), rtol=0, atol=0)


def test_double_precision_is_refused():
    convolution = draw_convolution(0, sides=(16,))
    convolution.x = convolution.x.double()
    index, sizes, geometry = convolution.lists
    with pytest.raises(NotImplementedError, match="float64"):
        native.conv2d_weight_grad(convolution.x, convolution.grad, index, sizes, geometry)


@pytest.mark.parametrize("order", ORDERS)
def test_results_are_in_the_order_that_was_asked_for(order):
    layout = BlockLayout((32, 32, 3, 3), (16, 16), torch.arange(9))
    x = guarded((2, 32, 5, 5), order)
    y = guarded((2, 32, 5, 5), order, float("nan"))
    values = torch.randn(9, 16, 16)
    found = native.conv2d(x, values, None, y, layout.tensors(), layout.sizes(), UNIT)
    assert found is y
    assert order_of(y) == order
    assert not y.isnan().any()


@pytest.mark.parametrize("wrong", [-1, -(2**31), 37, 2**31 - 1])
def test_ids_that_are_no_blocks_are_refused(wrong):
    layout = BlockLayout((32, 32, 3, 3), (16, 16), torch.arange(0, 36, 2))
    ids, x, values = layout.block_ids.clone(), torch.randn(1, 32, 4, 4), torch.randn(18, 16, 16)
    ids[1] = wrong
    rest = [ids], layout.sizes(), UNIT
    for call in (
        lambda: native.conv2d(x, values, None, torch.empty_like(x), *rest),
        lambda: native.conv2d_weight_grad(x, x, *rest),
        lambda: native.conv2d_input_grad(x, values, torch.empty_like(x), *rest),
    ):
        with pytest.raises(ValueError, match="not there"):
            call()


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path):
    """Reads and writes outside of a tensor, signed overflow, shifts: in any drawn geometry."""
    target = tmp_path / "checked.so"
    flags = ["-O1", "-g", "-march=native", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    sources = sorted(map(str, SOURCE.glob("*.cpp")))
    subprocess.run(["g++", *flags, *checks, "-o", str(target), *sources], check=True)
    preload = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, __file__, str(target)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    checked = ctypes.CDLL(sys.argv[1])
    native.library = lambda: checked
    for number in range(1500):
        passes(draw_convolution(number))
