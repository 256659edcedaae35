"""block_linear against the dense operator on the masked weight, on both paths of a CPU."""

import pytest
import torch
from layer_cases import DTYPES, LINEARS, assert_as_exact_as_dense, make

from sparse_kernels import block_linear

pytestmark = pytest.mark.usefixtures("both_paths")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LINEARS)
def test_linear_equals_dense(name, dtype):
    case = LINEARS[name]
    assert_as_exact_as_dense(case, dtype, *make(case, dtype))


def test_autocast_leaves_float64_alone():
    x, values, layout, bias = make(LINEARS["plain"], torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert block_linear(x, values, layout, bias).dtype == torch.float64


def test_an_update_between_forward_and_backward_is_noticed():
    x, values, layout, bias = make(LINEARS["plain"])
    y = block_linear(x, values, layout, bias)
    layout.update_(layout.block_ids.flip(0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
