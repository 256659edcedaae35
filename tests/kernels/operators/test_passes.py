"""The three operators of a layer, convolution or linear: gradients, compiled code, FLOPs."""

import pytest
import torch
from layer_cases import (
    CONVOLUTIONS,
    LINEARS,
    Case,
    assert_as_exact_as_dense,
    make,
    operator,
    sparse_results,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from sparse_kernels import BlockLayout, block_conv2d, decompositions
from sparse_kernels.operators.convolution import conv2d, conv2d_input_grad, conv2d_weight_grad
from sparse_kernels.operators.linear import linear, linear_input_grad, linear_weight_grad

pytestmark = pytest.mark.usefixtures("both_paths")
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
def test_definitions_give_the_same_in_the_same_order(called, arguments):
    found, wanted = decompositions()[called](*arguments), called(*arguments)
    torch.testing.assert_close(found, wanted)
    assert found.stride() == wanted.stride()


@each_operator
def test_first_and_second_gradients(called, arguments):
    first, second, index, sizes, *rest = arguments
    bias = rest.pop() if rest and isinstance(rest[-1], torch.Tensor) else None
    inputs = [first, second] if bias is None else [first, second, bias]

    def function(first, second, *bias):
        return called(first, second, index, sizes, *rest, *bias)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


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


@pytest.mark.parametrize("case", [Case((0, 32, 5, 5), (32, 32, 3, 3)), Case((0, 32), (48, 32))])
def test_an_empty_batch_has_zero_gradients(case):
    x, values, layout, bias = make(case)
    y, dx, *gradients = sparse_results(case, x, values, layout, bias, torch.ones(()))
    assert y.shape[0] == 0
    assert dx.shape == x.shape
    assert not any(g.any() for g in gradients)


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
