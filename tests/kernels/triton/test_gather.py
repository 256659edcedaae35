"""The Triton kernels against float64: interpreted on a CPU, compiled on a GPU.

Every case checks output and all gradients with outputs that start as NaN, inputs that lie between
NaN guards, empty and full rows of blocks, and unused slots.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, DEVICE, DTYPES, FLOOR, TILE, Case, make_layout, relative_error
from kernel_checks import check_convolution

from sparse_kernels import block_conv2d, block_linear
from sparse_kernels.memory_order import ORDERS, in_order
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks

pytestmark = pytest.mark.usefixtures("poisoned_kernels")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_convolution(name, dtype):
    torch.manual_seed(0)
    check_convolution(CASES[name], dtype)


@st.composite
def cases(draw) -> Case:
    """Draw a convolution whose output has at least one pixel."""
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    sizes = st.sampled_from((16, 32, 64, 128))
    case = Case(
        batch=draw(st.sampled_from((1, 2, 3, TILE, TILE + 1, 2 * TILE))),
        channels=draw(pair(1, 70)),
        image=draw(pair(1, 5)),
        kernel=draw(pair(1, 3)),
        stride=draw(pair(1, 3)),
        padding=draw(pair(0, 3)),
        dilation=draw(pair(1, 2)),
        block=draw(st.tuples(sizes, sizes)),
        density=draw(st.sampled_from((0.0, 0.3, 1.0))),
        order=draw(st.sampled_from(tuple(ORDERS))),
        unused=draw(st.integers(0, 2)),
        bias=draw(st.booleans()),
    )
    image = tuple(
        max(i, d * (k - 1) + 1) for i, k, d in zip(case.image, case.kernel, case.dilation)
    )
    return Case(**{**case.__dict__, "image": image})


COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
    "database": None,
}


@settings(max_examples=10, derandomize=True, **COMMON)
@given(cases(), st.sampled_from(DTYPES), st.integers(0, 1000))
def test_any_convolution(case, dtype, seed):
    torch.manual_seed(seed)
    check_convolution(case, dtype, drawn=True)


@pytest.mark.slow
@settings(max_examples=400, **COMMON)
@given(cases(), st.sampled_from(DTYPES), st.integers(0, 1000))
def test_any_convolution_at_length(case, dtype, seed):
    torch.manual_seed(seed)
    check_convolution(case, dtype, drawn=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "block", "rows"),
    [
        ((32, 48), (16, 16), (32,)),
        ((37, 21), (16, 32), (3, 5)),
        ((64, 128), (64, 32), (1,)),
        ((10, 64), (32, 64), (2, 2, 4)),
    ],
)
def test_linear(shape, block, rows, dtype):
    torch.manual_seed(0)
    layout = make_layout(Case(block=block, density=0.5), shape)
    x = torch.randn(*rows, shape[1]).to(DEVICE, dtype)
    dense = torch.randn(*shape, 1, 1).to(DEVICE, dtype)
    values = gather_blocks(dense, layout.tensors(), layout.sizes())
    grad = torch.randn(*rows, shape[0]).to(DEVICE, dtype)

    def run(x, values, grad, sparse):
        x, values = (t.detach().requires_grad_() for t in (x, values))
        weight = scatter_blocks(values, layout.tensors(), layout.sizes()).flatten(1)
        y = block_linear(x, values, layout) if sparse else F.linear(x, weight)
        y.backward(grad)
        return y.detach(), x.grad, values.grad

    exact = run(x.double(), values.double(), grad.double(), False)
    plain = run(x, values, grad, False)
    for found, dense, right in zip(run(x, values, grad, True), plain, exact):
        allowed = 2 * max(relative_error(dense, right), FLOOR[dtype])
        assert relative_error(found, right) <= allowed


@pytest.mark.parametrize("name", ["plain", "tma, several tiles", "strided in rows", "odd batch"])
def test_convolution_in_tf32(name, tf32):
    """On a GPU, fp32 goes through TMA with this alone. Its mantissa is that of fp16."""
    torch.manual_seed(0)
    check_convolution(CASES[name], torch.float32, floor=FLOOR[torch.float16])


def test_default_tiles_take_a_whole_batch():
    """One case with the tiles as the table has them: 128 images a tile."""
    torch.manual_seed(0)
    check_convolution(Case(batch=128, image=(2, 1), kernel=(1, 1), padding=(0, 0)), torch.float16)


def test_both_variants_are_reached(monkeypatch):
    from sparse_kernels.triton import gather_kernels, weight_grad_kernels

    called = set()
    for module, name in (
        (gather_kernels, "gather_tma"),
        (gather_kernels, "gather_pointers"),
        (weight_grad_kernels, "weight_grad_tma"),
        (weight_grad_kernels, "weight_grad_pointers"),
    ):
        kernel = getattr(module, name)

        class Spy:
            def __init__(self, kernel=kernel, name=name):
                self.kernel, self.name = kernel, name

            def __getitem__(self, grid):
                called.add(self.name)
                return self.kernel[grid]

        monkeypatch.setattr(module, name, Spy())
    check_convolution(Case(), torch.float16)
    assert called == {"gather_tma", "weight_grad_tma"}
    called.clear()
    check_convolution(Case(batch=3), torch.float16)
    assert called == {"gather_pointers", "weight_grad_pointers"}
    called.clear()
    check_convolution(
        Case(channels=(16, 3)), torch.float16
    )  # rows of 6 bytes: no TMA for the input
    assert called == {"gather_pointers", "weight_grad_pointers"}


def test_compiled_graphs_keep_the_order():
    torch.manual_seed(0)
    case = Case(batch=3)
    layout = make_layout(case, (48, 32, 3, 3))
    values = torch.randn(layout.slots, 16, 16, device=DEVICE)
    x = torch.randn(3, 32, 4, 3, device=DEVICE)
    compiled = torch.compile(block_conv2d, fullgraph=True, backend="aot_eager")
    for order in ORDERS:
        ordered = in_order(x, order)
        eager, found = (f(ordered, values, layout, padding=1) for f in (block_conv2d, compiled))
        assert torch.equal(eager, found)
        assert eager.stride() == found.stride()
