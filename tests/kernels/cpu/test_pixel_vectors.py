"""The kernel over pixels equals the dense operator for whatever layer, images and memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pixel_cases import Case, Layer, draw, error, guarded

from sparse_kernels.cpu import native, pixel_vectors
from sparse_kernels.cpu.library import SOURCE

SAME = ((1, 1), (1, 1), (1, 1))
LARGE = [
    Case(32, (64, 48, 3, 3), (16, 16), (1, 1), SAME, 0.2),
    Case(16, (128, 64, 3, 3), (16, 14), (4, 4), ((2, 2), (1, 1), (1, 1)), 0.2),
    Case(2, (40, 200, 3, 3), (32, 33), (8, 64), SAME, 0.3),
    Case(1, (70, 60, 5, 5), (56, 56), (2, 2), ((1, 1), (2, 2), (1, 1)), 0.1),
    Case(8, (320, 320, 3, 3), (8, 8), (1, 1), SAME, 0.1),
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def three_threads(one_thread):
    torch.set_num_threads(3)


def test_drawn_layers():
    for seed in range(200):
        Layer(draw(seed), seed).check()


def test_drawn_layers_in_three_threads(three_threads):
    for seed in range(200, 240):
        Layer(draw(seed), seed).check()


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_layers(case):
    Layer(case).check()


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 5000, 500))
def test_thousands_of_drawn_layers(first):
    for seed in range(first, first + 500):
        Layer(draw(seed), seed).check()


@pytest.mark.parametrize("case", [LARGE[0], LARGE[1], LARGE[4], draw(3), draw(11)], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(case):
    layer, found = Layer(case), []
    for number in (1, 2, 3, 8):
        torch.set_num_threads(number)
        found.append([t.contiguous().view(torch.int32) for t in layer.run()])
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], other))


@pytest.mark.parametrize("rows", [1, 5, 16, 100, 1030])
@pytest.mark.parametrize("block", [(1, 1), (4, 4), (8, 2)])
def test_rows_of_a_linear_layer(rows, block):
    layer = Layer(Case(1, (75, 50, 1, 1), (1, rows), block, ((1, 1), (0, 0), (1, 1)), 0.3))
    x, grad = (guarded(t[0, :, 0].T.contiguous()) for t in (layer.x, layer.grad))
    x, grad = x.view(1, rows, -1), grad.view(1, rows, -1)
    rest = layer.index, layer.sizes
    ours = [
        native.linear(x, layer.values, layer.bias, *rest),
        native.linear_input_grad(grad, layer.values, *rest),
    ]
    for a, b in zip(ours, layer.dense(torch.float64)):
        assert error(a[0].T, b[0, :, 0]) < 4e-7
    dvalues = native.linear_weight_grad(x, grad, *rest)
    assert dvalues.equal(layer.run()[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_single_rounded(dtype):
    """Of the same numbers, in every bit: nothing is rounded but the results."""
    for seed in range(30):
        layer = Layer(draw(seed), seed)
        operands = ("x", "grad", "values") + ("bias",) * layer.case.bias
        for name in operands:
            setattr(layer, name, guarded(getattr(layer, name).to(dtype)))
        halves = layer.run()
        for name in operands:
            setattr(layer, name, guarded(getattr(layer, name).float()))
        for found, single in zip(halves, layer.run()):
            assert found.dtype == dtype
            assert found.equal(single.to(dtype))


def test_no_images_and_no_rows():
    layer = Layer(Case(1, (8, 8, 1, 1), (4, 4), (1, 1), ((1, 1), (0, 0), (1, 1)), 0.3))
    rest = layer.index, layer.sizes
    x = torch.empty(0, 8, 4, 4)
    y = pixel_vectors.conv2d(x, layer.values, None, x.clone(), *rest, layer.case.geometry)
    assert y.shape == x.shape
    assert not native.linear_weight_grad(x[:, :, 0, 0], x[:, :, 0, 0], *rest).any()


@pytest.mark.parametrize("wrong", [-1, -(2**31), 1 << 20])
def test_ids_that_are_no_blocks_are_refused(wrong):
    layer = Layer(Case(2, (8, 8, 3, 3), (4, 4), (2, 2), SAME, 0.3))
    layer.index[0][2] = wrong
    with pytest.raises(ValueError, match="not there"):
        layer.run()


def test_ids_of_another_type_are_refused():
    layer = Layer(Case(2, (8, 8, 3, 3), (4, 4), (2, 2), SAME, 0.3))
    layer.index[0] = layer.index[0].long()
    with pytest.raises(ValueError, match=r"found torch\.int64"):
        layer.run()


SANITIZED = """
import ctypes, sys, torch
from pathlib import Path
from pixel_cases import Layer, draw
from sparse_kernels.cpu import pixel_vectors
native = ctypes.CDLL(sys.argv[1])
gomp = ctypes.CDLL(str(next(Path(torch.__file__).parent.glob("lib/libgomp*"))))
native.use_runtime(ctypes.cast(gomp.GOMP_parallel, ctypes.c_void_p))
pixel_vectors.library = lambda: native
for seed in range(150):
    torch.set_num_threads(1 + seed % 3)
    Layer(draw(seed), seed).check()
"""


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path):
    """An AddressSanitizer and UBSan build runs drawn layers."""
    target = tmp_path / "native.so"
    flags = ["-O1", "-g", "-march=native", "-std=c++17", "-shared", "-fPIC"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [str(path) for path in SOURCE.glob("*.cpp")]
    subprocess.run(["g++", *flags, "-o", str(target), *sources], check=True)
    before = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    paths = [str(Path(__file__).parents[2] / "helpers"), *filter(None, sys.path)]
    subprocess.run(
        [sys.executable, "-c", SANITIZED, str(target)],
        check=True,
        env={
            "LD_PRELOAD": " ".join(before),
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": ":".join(paths),
        },
    )
