"""Tools that cut parameters up are refused by name."""

import pytest
import torch
from torch import nn

from sparse_engine import DynamicSparsity, sparsify
from sparse_engine.errors import InputError


def setting():
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
    sparsify(model, 0.5, "uniform", (4, 4))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_fsdp1_is_refused_by_name():
    model, optimizer = setting()
    wrapped = type("FullyShardedDataParallel", (nn.Sequential,), {})(model)
    with pytest.raises(InputError, match=r"FSDP1 \(FullyShardedDataParallel\) .* flat parameter"):
        DynamicSparsity(wrapped, optimizer)


def test_deepspeed_is_refused_by_name():
    model, optimizer = setting()
    kind = type("BF16_Optimizer", (), {"__module__": "deepspeed.runtime", "step": lambda _: None})
    outer = kind()
    outer.optimizer = optimizer
    with pytest.raises(InputError, match=r"DeepSpeed ZeRO .* \(BF16_Optimizer\)"):
        DynamicSparsity(model, outer)


def test_flat_values_are_refused():
    model, optimizer = setting()
    model[0].values.data = model[0].values.data.flatten()
    with pytest.raises(InputError, match=r"layer '0' are sharded \(a flat part\)"):
        DynamicSparsity(model, optimizer)
