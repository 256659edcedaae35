"""block_conv2d against the dense operator on the masked weight, on both paths of a CPU."""

import pytest
import torch
from layer_cases import (
    CONVOLUTIONS,
    DTYPES,
    Case,
    assert_as_exact_as_dense,
    make,
    sparse_results,
    stored_part,
)

from sparse_kernels import block_conv2d

pytestmark = pytest.mark.usefixtures("both_paths")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_dense(name, dtype):
    case = CONVOLUTIONS[name]
    assert_as_exact_as_dense(case, dtype, *make(case, dtype))


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
