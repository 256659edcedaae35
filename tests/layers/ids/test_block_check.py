"""Means of networks with different blocks are refused, however they were made."""

import copy

import pytest
import torch
from torch import nn

from sparse_engine import sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.ids.block_check import are_averaged, block_signs

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    sparsify(model, 0.5, "uniform", (8, 8), init="random")
    return model


def mean_of(first: dict, second: dict, share: float = 0.5, integers: bool = False) -> dict:
    """Return a mean of state dicts; integers are the first's, or averaged and cut as well."""
    return {
        name: torch.lerp(value, second[name], share)
        if value.is_floating_point()
        else (((1 - share) * value + share * second[name]).to(value.dtype) if integers else value)
        for name, value in first.items()
    }


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mean_of_two_networks_is_refused(dtype, share, integers):
    first, second, model = (network(seed).to(dtype) for seed in (0, 1, 2))
    before = copy.deepcopy(model.state_dict())
    mean = mean_of(first.state_dict(), second.state_dict(), share, integers)
    mean = {k: v.to(dtype) if v.is_floating_point() else v for k, v in mean.items()}
    with pytest.raises(
        RuntimeError, match=r"slot by slot; average dense_state_dict\(model\)|block"
    ):
        model.load_state_dict(mean)
    assert all(before[k].equal(v) for k, v in model.state_dict().items() if "0." in k)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(mean[name])
        for name, tensor in model.named_buffers():
            tensor.copy_(mean[name])
    with pytest.raises(InputError, match=r"means of networks with different blocks|no layout"):
        model(X.to(dtype))


def test_a_mean_written_into_one_of_the_networks_is_refused():
    first, second = network(0), network(1)
    mean = mean_of(first.state_dict(), second.state_dict())
    state = dict(first.named_parameters()) | dict(first.named_buffers())
    with torch.no_grad():
        for name, value in mean.items():
            state[name].copy_(value)
    with pytest.raises(InputError, match="means of networks with different blocks"):
        first(X)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(X), second(X))


def test_a_mean_of_networks_with_the_same_blocks_is_the_mean():
    first, model = network(0), network(2)
    second = copy.deepcopy(first)
    for p in second.parameters():
        p.data.neg_()
    model.load_state_dict(mean_of(first.state_dict(), second.state_dict(), 0.25, integers=True))
    torch.testing.assert_close(model[0].dense_weight(), first[0].dense_weight() / 2)


def test_checks_that_a_tool_has_left_unwritten_are_made_anew():
    first, model = network(0), network(1)
    for own, other in zip(model.parameters(), first.parameters()):
        own.data.copy_(other)
    model[0].block_ids.copy_(first[0].block_ids)
    model[2].block_ids.copy_(first[2].block_ids)
    model[0].block_check = torch.empty(32).fill_(1e30)
    model[2].block_check.zero_()
    assert torch.equal(model(X), first(X))
    assert model.state_dict()["0.block_check"].equal(first[0].block_check)


def test_states_of_before_load_and_others_are_as_they_were():
    first, model = network(0), network(1)
    state = {name: v for name, v in first.state_dict().items() if "block_check" not in name}
    model.load_state_dict(state)
    assert torch.equal(model(X), first(X))
    assert model[0].block_check.equal(first[0].block_check)


def test_signs_are_of_ids_in_their_order():
    ids = torch.randperm(500).to(torch.int32)
    found = block_signs(ids)
    assert found.abs().equal(torch.ones(32))
    assert found.equal(block_signs(ids.clone()))
    for changed in (ids.flip(0), ids + 1, ids.roll(1), torch.cat([ids[1:2], ids[:1], ids[2:]])):
        other = block_signs(changed)
        assert 4 < (other != found).sum() < 28
        assert are_averaged((found + other) / 2)
    assert not are_averaged(0.3 * found + 0.7 * found)
    for unwritten in (torch.zeros(32), torch.full((32,), torch.nan), found * 1e30, found * 1e-40):
        assert not are_averaged(unwritten)
