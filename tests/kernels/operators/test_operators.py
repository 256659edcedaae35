"""block_conv2d and block_linear against the dense operators on the masked weight.

Both paths of a CPU are tested. The rule for every result: its relative error, measured against
float64, is at most twice that of dense PyTorch in the same dtype. Weights are built and taken
apart here by loops over the slots.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.dispatch.backend import VARIABLE
from sparse_kernels.operators.convolution import conv2d, conv2d_input_grad, conv2d_weight_grad
from sparse_kernels.operators.linear import linear, linear_input_grad, linear_weight_grad

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Case:
    """An input shape, a weight shape, a block, the share of active blocks, unused slots."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    block: tuple[int, int] = (16, 16)
    density: float = 0.4
    unused: int = 0
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | str = 0
    dilation: int | tuple[int, int] = 1
    bias: bool = True

    @property
    def geometry(self):
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


CONVOLUTIONS = {
    "plain": Case((2, 32, 7, 6), (32, 32, 3, 3)),
    "padded": Case((2, 32, 7, 6), (48, 32, 3, 3), padding=1),
    "padding by dimension": Case((2, 32, 7, 6), (16, 32, 3, 3), padding=(2, 0)),
    "more padding than kernel": Case((1, 16, 3, 3), (16, 16, 2, 2), padding=3),
    "stride": Case((3, 32, 9, 8), (32, 32, 3, 3), stride=2, padding=1),
    "stride by dimension": Case((2, 16, 9, 8), (32, 16, 3, 3), stride=(1, 3), padding=1),
    "stride past the kernel": Case((2, 32, 8, 9), (32, 32, 1, 1), stride=3),
    "dilation": Case((2, 32, 9, 9), (32, 32, 3, 3), dilation=2, padding=2),
    "dilation by dimension": Case((2, 32, 9, 9), (32, 32, 3, 2), dilation=(1, 3), stride=2),
    "pointwise": Case((2, 48, 5, 5), (32, 48, 1, 1)),
    "wide kernel": Case((2, 16, 4, 9), (32, 16, 1, 5), padding=(0, 2)),
    "ragged": Case((2, 21, 6, 5), (37, 21, 3, 3), padding=1),
    "ragged and unlike": Case((2, 11, 6, 5), (5, 11, 3, 2), block=(2, 4), padding=1),
    "three channels": Case((2, 3, 8, 8), (16, 3, 3, 3), block=(32, 32), padding=1),
    "same": Case((2, 32, 6, 5), (32, 32, 3, 5), padding="same"),
    "same, even kernel": Case((2, 32, 6, 5), (32, 32, 2, 4), padding="same"),
    "same, even and odd, dilated": Case((2, 16, 7, 8), (16, 16, 4, 3), padding="same", dilation=3),
    "valid": Case((2, 32, 6, 5), (32, 32, 3, 3), padding="valid"),
    "unbatched": Case((32, 6, 5), (32, 32, 3, 3), padding=1),
    "unbatched, same": Case((32, 6, 5), (32, 32, 2, 2), padding="same"),
    "kernel as large as the image": Case((2, 32, 3, 4), (32, 32, 3, 4)),
    "no bias": Case((2, 32, 7, 6), (32, 32, 3, 3), bias=False),
    "one block": Case((2, 64, 5, 5), (64, 64, 3, 3), density=0.001),
    "full": Case((2, 32, 5, 5), (32, 32, 3, 3), density=1),
    "unstructured": Case((2, 5, 6, 6), (7, 5, 3, 3), block=(1, 1)),
    "unused slots": Case((2, 21, 6, 5), (37, 21, 3, 3), unused=3, padding=1),
    "one image, one pixel": Case((1, 32, 1, 1), (32, 32, 1, 1)),
}
LINEARS = {
    "plain": Case((6, 48), (32, 48)),
    "ragged": Case((5, 33), (50, 33)),
    "ten classes": Case((5, 40), (10, 40), block=(32, 32)),
    "one vector": Case((32,), (48, 32)),
    "sequence": Case((2, 3, 4, 32), (48, 32), bias=False),
    "one block": Case((4, 64), (64, 64), density=0.01),
    "full": Case((4, 32), (64, 32), density=1),
    "unstructured": Case((4, 7), (9, 7), block=(1, 1)),
    "unused slots": Case((4, 33), (50, 33), unused=2),
}


def make(case, dtype=torch.float32, seed=0):
    """Return x, values, layout and bias of a case; unused slots hold NaN."""
    torch.manual_seed(seed)
    whole = BlockLayout(case.weight, case.block, torch.arange(1))
    active = max(1, round(case.density * whole.total))
    ids = torch.cat([torch.randperm(whole.total)[:active], torch.full((case.unused,), whole.total)])
    layout = BlockLayout(case.weight, case.block, ids[torch.randperm(len(ids))], active)
    values = torch.randn(layout.slots, layout.block[1], layout.block[0], dtype=torch.float64)
    values[layout.block_ids == layout.total] = torch.nan
    x = torch.randn(case.x, dtype=torch.float64)
    bias = torch.randn(case.weight[0], dtype=torch.float64) if case.bias else None
    x, values = x.to(dtype).requires_grad_(), values.to(dtype).requires_grad_()
    return x, values, layout, None if bias is None else bias.to(dtype).requires_grad_()


def slices(layout):
    """Yield slot, place in the dense weight [O, C, R, S] and real sizes of every used slot."""
    bo, bc = layout.block
    for slot, block_id in enumerate(layout.block_ids.tolist()):
        if block_id < layout.total:
            pair, tap = divmod(block_id, layout.grid[2] * layout.grid[3])
            (o, c), (r, s) = divmod(pair, layout.grid[1]), divmod(tap, layout.grid[3])
            rows = slice(o * bo, min((o + 1) * bo, layout.shape[0]))
            columns = slice(c * bc, min((c + 1) * bc, layout.shape[1]))
            sizes = (rows.stop - rows.start, columns.stop - columns.start)
            yield slot, (rows, columns, r, s), sizes


def dense_weight(values, layout):
    """Return the weight [O, C, R, S] that the values mean."""
    weight = values.new_zeros(layout.shape)
    for slot, place, (rows, columns) in slices(layout):
        weight[place] = values.detach()[slot, :columns, :rows].T
    return weight


def stored_part(dense, layout):
    """Return the values [Z, BC, BO] of a weight or its gradient."""
    values = dense.new_zeros(layout.slots, layout.block[1], layout.block[0])
    for slot, place, (rows, columns) in slices(layout):
        values[slot, :columns, :rows] = dense[place].T
    return values


def operator(case):
    return block_conv2d if len(case.weight) == 4 else block_linear


def sparse_results(case, x, values, layout, bias, grad):
    """Return output, dx, dvalues and dbias of the operator under test."""
    arguments = case.geometry if len(case.weight) == 4 else {}
    y = operator(case)(x, values, layout, bias, **arguments)
    wanted = [t for t in (x, values, bias) if t is not None]
    return [y, *torch.autograd.grad(y, wanted, grad.to(y.dtype).expand_as(y))]


def dense_results(case, x, values, layout, bias, grad, dtype):
    """Return the same of dense PyTorch in some dtype."""
    x = x.detach().to(dtype).requires_grad_()
    weight = dense_weight(values, layout).to(dtype).requires_grad_()
    bias = None if bias is None else bias.detach().to(dtype).requires_grad_()
    if len(case.weight) == 4:
        y = F.conv2d(x, weight, bias, **case.geometry)
    else:
        y = F.linear(x, weight.flatten(1), bias)
    wanted = [t for t in (x, weight, bias) if t is not None]
    dx, dweight, *rest = torch.autograd.grad(y, wanted, grad.to(dtype))
    return [y, dx, stored_part(dweight, layout), *rest]


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def assert_as_exact_as_dense(case, dtype, x, values, layout, bias):
    """Compare output and all gradients; float64 with itself, to rounding."""
    grad = torch.randn_like(sparse_results(case, x, values, layout, bias, torch.ones(()))[0])
    found = sparse_results(case, x, values, layout, bias, grad)
    exact = dense_results(case, x, values, layout, bias, grad, torch.float64)
    dense = dense_results(case, x, values, layout, bias, grad, dtype)
    for name, ours, truth, theirs in zip(("y", "dx", "dvalues", "dbias"), found, exact, dense):
        assert ours.dtype == dtype
        assert ours.shape == truth.shape
        limit = 1e-14 if dtype == torch.float64 else 2 * error(theirs, truth)
        assert error(ours, truth) <= limit, name


@pytest.fixture(autouse=True, params=["masked", "gemm"])
def path(request, monkeypatch):
    """Run every test of this file on both paths."""
    monkeypatch.setenv(VARIABLE, request.param)


@pytest.fixture
def poisoned():
    """Let torch.empty hold NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_dense(name, dtype):
    case = CONVOLUTIONS[name]
    assert_as_exact_as_dense(case, dtype, *make(case, dtype))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LINEARS)
def test_linear_equals_dense(name, dtype):
    case = LINEARS[name]
    assert_as_exact_as_dense(case, dtype, *make(case, dtype))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", [Case((2, 48, 5, 5), (64, 48, 3, 3)), Case((4, 48), (64, 48))])
def test_empty_rows_and_columns(case):
    x, _, layout, bias = make(case)
    mask = torch.zeros(layout.grid, dtype=torch.bool)
    mask[2, 1] = True
    layout = BlockLayout.from_mask(mask, layout.shape, layout.block)
    values = torch.randn(layout.slots, 16, 16, requires_grad=True)
    assert_as_exact_as_dense(case, torch.float32, x, values, layout, bias)
    y, dx, *_ = sparse_results(case, x, values, layout, None, torch.ones(()))
    assert not y[:, :32].any()
    assert not dx[:, :16].any()
    assert dx[:, 16:32].all()


@pytest.mark.usefixtures("poisoned")
def test_gradients_outside_the_weight_and_of_unused_slots_are_zero():
    case = CONVOLUTIONS["unused slots"]
    x, values, layout, bias = make(case)
    dvalues = sparse_results(case, x, values, layout, bias, torch.ones(()))[2]
    inside = stored_part(torch.ones(layout.shape), layout).bool()
    assert dvalues[inside].all()
    assert not dvalues[~inside].any()
    assert (~inside).any()


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("name", ["plain", "ragged", "stride", "same, even kernel"])
def test_channels_last_in_channels_last_out(name, padding):
    case = CONVOLUTIONS[name]
    if padding == "same" and case.stride != 1:
        padding = 1
    case = Case(case.x, case.weight, stride=case.stride, padding=padding)
    x, values, layout, bias = make(case)
    rows = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    assert_as_exact_as_dense(case, torch.float32, rows, values, layout, bias)
    for source, wanted in ((rows, torch.channels_last), (x, torch.contiguous_format)):
        y = block_conv2d(source, values, layout, bias, **case.geometry)
        assert y.is_contiguous(memory_format=wanted)
        y.backward(torch.ones_like(y))
        assert source.grad.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("operand", ["expanded", "transposed"])
def test_gradients_of_any_strides(operand):
    case = CONVOLUTIONS["padded"]
    x, values, layout, bias = make(case)
    y = block_conv2d(x, values, layout, bias, padding=1)
    grad = torch.ones(()).expand_as(y)
    if operand == "transposed":
        grad = torch.randn(y.mT.shape).mT
    found = sparse_results(case, x, values, layout, bias, grad)
    wanted = sparse_results(case, x, values, layout, bias, grad.contiguous())
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("case", [Case((0, 32, 5, 5), (32, 32, 3, 3)), Case((0, 32), (48, 32))])
def test_an_empty_batch_has_zero_gradients(case):
    x, values, layout, bias = make(case)
    y, dx, *gradients = sparse_results(case, x, values, layout, bias, torch.ones(()))
    assert y.shape[0] == 0
    assert dx.shape == x.shape
    assert not any(g.any() for g in gradients)


SMALL_CONVOLUTION = Case((1, 3, 4, 3), (3, 3, 2, 3), (2, 2), 0.2, 1, stride=(2, 1), padding=(1, 2))
SMALL_LINEAR = Case((3, 4), (5, 4), block=(2, 3), density=0.6, unused=1)


def operator_calls(case):
    """Yield the three operators of a case with arguments in float64."""
    x, values, layout, bias = make(case, torch.float64)
    values = values.detach().nan_to_num(0).requires_grad_()
    index, sizes = layout.tensors(), layout.sizes()
    if len(case.weight) == 4:
        numbers = ([2, 1], [1, 2], [1, 1])
        grad = torch.randn_like(conv2d(x, values, index, sizes, *numbers)).requires_grad_()
        yield conv2d, (x, values, index, sizes, *numbers, bias)
        yield conv2d_input_grad, (grad, values, index, sizes, list(case.x[2:]), *numbers)
        yield conv2d_weight_grad, (x, grad, index, sizes, *numbers)
    else:
        grad = torch.randn_like(linear(x, values, index, sizes)).requires_grad_()
        yield linear, (x, values, index, sizes, bias)
        yield linear_input_grad, (grad, values, index, sizes)
        yield linear_weight_grad, (x, grad, index, sizes)


ALL_CALLS = [*operator_calls(SMALL_CONVOLUTION), *operator_calls(SMALL_LINEAR)]
each_operator = pytest.mark.parametrize(
    ("called", "arguments"), ALL_CALLS, ids=[str(c[0].name()) for c in ALL_CALLS]
)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@each_operator
def test_operator_obeys_the_rules_of_torch_library(called, arguments):
    torch.library.opcheck(called, arguments)


@each_operator
def test_first_and_second_gradients(called, arguments):
    first, second, index, sizes, *rest = arguments
    bias = rest.pop() if rest and isinstance(rest[-1], torch.Tensor) else None
    inputs = [first, second] if bias is None else [first, second, bias]

    def function(first, second, *bias):
        return called(first, second, index, sizes, *rest, *bias)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("case", [CONVOLUTIONS["ragged"], LINEARS["ragged"]])
def test_compiled_equals_eager_and_topology_updates_do_not_recompile(case):
    x, values, layout, bias = make(case)
    arguments = case.geometry if len(case.weight) == 4 else {}
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda *inputs: operator(case)(*inputs, **arguments), fullgraph=True, backend=counter
    )
    inactive = (~layout.mask()).flatten().nonzero().flatten()
    for step in range(3):
        if step:
            ids = layout.block_ids.clone()
            ids[step] = inactive[step]
            layout.update_(ids)
        y = compiled(x, values, layout, bias)
        grad = torch.randn_like(y)
        found = [y, *torch.autograd.grad(y, (x, values, bias), grad)]
        for ours, eager in zip(found, sparse_results(case, x, values, layout, bias, grad)):
            assert ours.equal(eager)
    assert counter.frame_count == 1


@pytest.mark.parametrize("case", [CONVOLUTIONS["ragged"], LINEARS["ragged"]])
def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_parameters(case):
    x, values, layout, bias = make(case)
    arguments = case.geometry if len(case.weight) == 4 else {}
    with torch.autocast("cpu", torch.bfloat16):
        y = operator(case)(x, values, layout, bias, **arguments)
    assert y.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y, (x, values, bias), torch.ones_like(y))
    assert all(g.dtype == torch.float32 for g in gradients)
    low = [t.detach().bfloat16().requires_grad_() for t in (x, values, bias)]
    expected = sparse_results(case, low[0], low[1], layout, low[2], torch.ones(()))
    for found, wanted in zip([y, *gradients], expected):
        assert found.equal(wanted.to(found.dtype))


def test_autocast_leaves_float64_alone():
    x, values, layout, bias = make(LINEARS["plain"], torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert block_linear(x, values, layout, bias).dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "case", "outputs"),
    [
        ("conv2d", CONVOLUTIONS["stride"], 3 * 5 * 4),
        ("conv2d", CONVOLUTIONS["unused slots"], 2 * 6 * 5),
        ("linear", LINEARS["sequence"], 2 * 3 * 4),
    ],
)
def test_flops_are_counted_exactly(name, case, outputs):
    x, values, layout, bias = make(case)
    once = 2 * values.numel() * outputs
    with FlopCounterMode(display=False) as counter:
        sparse_results(case, x, values, layout, bias, torch.ones(()))
    found = {str(k).split(".")[-1]: v for k, v in counter.get_flop_counts()["Global"].items()}
    assert found == {name: once, f"{name}_input_grad": once, f"{name}_weight_grad": once}


def test_flops_of_a_gradient_that_nobody_wants_are_not_spent():
    x, values, layout, bias = make(CONVOLUTIONS["plain"])
    with FlopCounterMode(display=False) as counter:
        block_conv2d(x.detach(), values, layout, bias).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * values.numel() * 2 * 5 * 4


def test_an_update_between_forward_and_backward_is_noticed():
    x, values, layout, bias = make(LINEARS["plain"])
    y = block_linear(x, values, layout, bias)
    layout.update_(layout.block_ids.flip(0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
