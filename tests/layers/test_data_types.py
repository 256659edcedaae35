"""Data types that sparse layers do not compute in are refused at once, in one line."""

import pytest
import torch
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear, sparsify
from sparse_engine.errors import InputError

ODD = [torch.complex64, torch.complex128, torch.int8, torch.bool, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", ODD, ids=str)
def test_odd_data_types_are_refused_before_anything_is_changed(dtype):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    weight = torch.ones(8, 32).to(dtype)
    model[2].weight = nn.Parameter(weight, requires_grad=False)
    first = model[0]
    with pytest.raises(InputError, match=rf"layer '2' .* {dtype}.*skip=\['2'\]") as raised:
        sparsify(model, 0.5, "uniform", (8, 8))
    assert "\n" not in str(raised.value)
    assert model[0] is first
    sparsify(model, 0.5, "uniform", (8, 8), skip=["2"])
    layer = model[0]
    calls = (
        lambda: SparseLinear.from_dense(model[2]),
        lambda: SparseLinear(16, 16, dtype=dtype),
        lambda: SparseConv2d(16, 16, 3, dtype=dtype),
        lambda: layer.type(dtype),
    )
    for call in calls:
        with pytest.raises(InputError, match=f"weights of {dtype}"):
            call()
    assert (layer.values.dtype, layer.bias.dtype) == (torch.float32, torch.float32)


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_a_layer_stays_as_it_was_when_it_cannot_become_complex():
    layer = SparseLinear(16, 16, block=(8, 8))
    with pytest.raises(InputError, match="complex64"):
        layer.to(torch.complex64)
    assert layer.to(torch.bfloat16).values.dtype == torch.bfloat16
    assert layer.double()(torch.ones(1, 16, dtype=torch.float64)).dtype == torch.float64
