"""Native kernels with vectors over channels, against the dense operator in float64."""

import ctypes
import math
import os
import platform
import subprocess
import sys

import pytest
import torch
from drawn_convolutions import draw_convolution, guarded, guards_are_whole, in_type

from sparse_kernels import BlockLayout
from sparse_kernels.cpu import channel_vectors as native
from sparse_kernels.cpu.library import SOURCE
from sparse_kernels.cpu.native import linear, linear_input_grad, linear_weight_grad
from sparse_kernels.memory_order import ORDERS, order_of

EPSILON = torch.finfo(torch.float32).eps
UNIT = ((1, 1), (1, 1), (1, 1))
BF16 = torch.bfloat16


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


def check_bf16(convolution):
    """Compare with float64: errors are twice those of exact results that are rounded, at most.

    Those of the dense layer in bf16 are as large or larger, but oneDNN 3.12 crashes with some.
    """
    convolution = in_type(convolution, BF16)
    for found, right in zip(passes(convolution), convolution.dense()):
        if found is not None:
            assert found.dtype == BF16
            assert (found - right).norm() <= 2 * (right.to(BF16) - right).norm()


def build(folder, *flags):
    """Return a library of the kernels, compiled with these flags."""
    target = folder / "checked.so"
    usual = ["-march=native", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi"]
    sources = sorted(map(str, SOURCE.glob("*.cpp")))
    subprocess.run(["g++", *usual, *flags, "-o", str(target), *sources], check=True)
    return target


def test_drawn_geometries_equal_dense_ones():
    for seed in range(200):
        check(draw_convolution(seed))


def test_rows_longer_than_a_chunk():
    for seed in range(12):
        check(draw_convolution(seed, (16, 32), most_channels=40, longest=(3, 3000)))


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_tensors_of_other_sizes_are_refused(dtype):
    layout = BlockLayout((32, 32, 3, 3), (16, 16), torch.arange(9))
    x, values, sizes = torch.randn(1, 32, 4, 4), torch.randn(9, 16, 16), layout.sizes()
    lists = layout.tensors()
    for operands in (
        (x[:, :16], values, None, x, lists),
        (x, values[:8], None, x, lists),
        (x, torch.randn(9, 17, 16), None, x, lists),
        (torch.randn(1, 33, 4, 4), values, None, x, lists),
        (x, values, torch.zeros(31), x, lists),
        (x, values, None, x, [t[:-1] for t in lists]),
        (x, values, None, x, [t.long() for t in lists]),
    ):
        operands = [t.to(dtype) if torch.is_tensor(t) else t for t in operands]
        with pytest.raises(ValueError, match="found"):
            native.conv2d(*operands, sizes, UNIT)


def test_drawn_geometries_in_bf16():
    for seed in range(150):
        check_bf16(draw_convolution(seed))
    for seed in range(5):
        check_bf16(draw_convolution(seed, (16, 32), most_channels=40, longest=(3, 3000)))


def test_pairs_of_bf16_are_multiplied_wherever_they_can_be(monkeypatch):
    """In sums over an even number of channels that begin at a multiple of four bytes.

    On a processor that cannot multiply pairs, nowhere.
    """
    taken, run = [], native._run
    monkeypatch.setattr(native, "_run", lambda n, call: (taken.append(call.pairs), run(n, call)))

    def pairs(channels, dtype=BF16, size=5, offsets=(0, 0)):
        layout = BlockLayout((*channels, 3, 3), (16, 16), torch.arange(3))
        memory = [torch.randn(offset + 8192, dtype=dtype)[offset:] for offset in (*offsets, 0)]
        shapes = [(1, size, size, channels[1]), (3, 16, 16), (1, size, size, channels[0])]
        x, values, grad = (m[: math.prod(s)].view(s) for m, s in zip(memory, shapes))
        x, grad = (t.permute(0, 3, 1, 2) for t in (x, grad))
        rest = layout.tensors(), layout.sizes(), UNIT
        taken.clear()
        native.conv2d(x, values, None, torch.empty_like(grad), *rest)
        native.conv2d_input_grad(grad, values, torch.empty_like(x), *rest)
        native.conv2d_weight_grad(x, grad, *rest)
        return taken.copy()

    can = int(torch.cpu._is_avx512_bf16_supported())
    assert pairs((32, 32)) == pairs((30, 22)) == pairs((32, 32), size=1) == [can, can, can]
    assert pairs((31, 22)) == [can, 0, can]
    assert pairs((32, 21)) == pairs((32, 32), offsets=(3, 0)) == [0, can, can]
    assert pairs((32, 32), offsets=(0, 3)) == [0, 0, can]
    assert pairs((32, 32), torch.float16) == pairs((32, 32), torch.float32) == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs a flag of x86 compilers")
def test_processors_that_multiply_no_pairs(tmp_path, monkeypatch):
    library = ctypes.CDLL(str(build(tmp_path, "-O2", "-mno-avx512bf16")))
    monkeypatch.setattr(native, "library", lambda: library)
    assert not native.multiplies_pairs(BF16)
    for seed in range(150):
        check_bf16(draw_convolution(seed))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_thousands_of_drawn_geometries_equal_dense_ones(part):
    for seed in range(1000 * part, 1000 * (part + 1)):
        convolution = draw_convolution(10_000 + seed, most_channels=300 if seed % 4 == 0 else 140)
        check(convolution, floor=2 * EPSILON)
        if seed % 4 == 1:
            check_bf16(convolution)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    before = torch.get_num_threads()
    try:
        for seed in range(25):
            convolution = in_type(draw_convolution(seed, sides=(16, 32, 48)), dtype)
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


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_gradients_outside_the_weight_are_zero_whatever_the_images_hold(dtype):
    layout = BlockLayout((20, 20, 1, 1), (16, 16), torch.arange(4))
    lists = layout.tensors(), layout.sizes(), ((1, 1), (0, 0), (1, 1))
    x = torch.full((1, 20, 2, 2), float("inf"), dtype=dtype)
    dvalues = native.conv2d_weight_grad(x, torch.full_like(x, float("nan")), *lists)
    assert not dvalues[layout.outside()].any()
    assert dvalues[~layout.outside()].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, BF16])
def test_half_precision_is_that_of_single_rounded(dtype, monkeypatch):
    """Of the same numbers, in every bit, unless pairs are multiplied: only results are rounded."""
    monkeypatch.setattr(native, "multiplies_pairs", lambda dtype: False)
    for seed in range(30):
        convolution = in_type(draw_convolution(seed), dtype)
        singles = passes(in_type(convolution, torch.float32))
        for found, single in zip(passes(convolution), singles):
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
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    target = build(tmp_path, "-O1", "-g", *checks)
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
    for number in range(2000):
        passes(in_type(draw_convolution(number), (torch.float32, BF16)[number % 2]))
