"""A copy computes what its tensors say, whatever tool has copied them."""

import copy
import io
import pickle

import pytest
import torch
from copied_networks import X, assert_same, copy_over, network, tensors
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparse_engine import dense_state_dict
from sparse_engine.errors import InputError


def write_numpy(own, other):
    own.numpy()[...] = other.numpy()


WRITES = {
    "copy_": lambda own, other: own.copy_(other),
    "data.copy_": lambda own, other: own.data.copy_(other),
    "numpy": write_numpy,
}


@pytest.mark.parametrize("write", WRITES)
def test_writes_over_a_state_dict(write):
    model, original = network(0), network(1)
    with torch.no_grad():
        for own, other in zip(model.state_dict().values(), original.state_dict().values()):
            WRITES[write](own, other.detach())
    assert_same(model, original)


def assign_data(model, original):
    for own, other in zip(tensors(model), tensors(original)):
        own.data = other.data.clone()


def exchange_data(model, original):
    for own, other in zip(tensors(model), tensors(copy.deepcopy(original))):
        own.data, other.data = other.data, own.data


def replace_entries(model, original):
    for own, other in zip(model.modules(), original.modules()):
        own._parameters.update(other._parameters)
        own._buffers.update(other._buffers)


def set_attributes(model, original):
    for own, other in zip(model.modules(), original.modules()):
        for name, parameter in other._parameters.items():
            setattr(own, name, copy.deepcopy(parameter))
        for name, buffer in other._buffers.items():
            setattr(own, name, buffer.clone())


def set_wide_ids(model, original):
    set_attributes(model, original)
    for module in model.modules():
        if "block_ids" in module._buffers:
            module.block_ids = module.block_ids.long()


@torch.no_grad()
def set_storages(model, original):
    for own, other in zip(tensors(model), tensors(original)):
        own.set_(other.detach().clone())


@pytest.mark.parametrize(
    "replace",
    [assign_data, exchange_data, replace_entries, set_attributes, set_wide_ids, set_storages],
)
def test_tensors_that_are_replaced(replace):
    model, original = network(0), network(1)
    replace(model, original)
    assert_same(model, original)
    assert_same(original, network(1))


def test_copies_of_a_copy_that_nobody_has_looked_at():
    original = network(1)
    for make in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded):
        model = network(0)
        copy_over(model, original)
        assert_same(make(model), original)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_functional_call_with_the_tensors_of_another_network():
    model, original = network(0), network(1)
    torch.testing.assert_close(functional_call(model, original.state_dict(), (X,)), original(X))
    own = {k: v.detach().clone().requires_grad_() for k, v in original.named_parameters()}
    functional_call(model, {**own, **dict(original.named_buffers())}, (X,)).sum().backward()
    original(X).sum().backward()
    for name, parameter in original.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, msg=name)
    assert_same(model, network(0))


def test_writes_in_inference_mode():
    model, original = network(0), network(1)
    with torch.inference_mode():
        for own, other in zip(model.state_dict().values(), original.state_dict().values()):
            own.copy_(other)
        model(X)
        born = network(2)
        born.load_state_dict(original.state_dict())
        torch.testing.assert_close(born(X), original(X))
    assert_same(model, original)


def by_hand(average, model):
    for own, new in zip(average.state_dict().values(), model.state_dict().values()):
        own.copy_(0.9 * own + 0.1 * new if own.is_floating_point() else new)


def by_hand_over_all(average, model):
    for own, new in zip(tensors(average), tensors(model)):
        own.data.copy_(0.9 * own.data + 0.1 * new.data)  # integers are cut: one less, or more


AVERAGES = {
    "by hand": (copy.deepcopy, by_hand),
    "by hand, integers too": (copy.deepcopy, by_hand_over_all),
    "AveragedModel": (
        lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
        AveragedModel.update_parameters,
    ),
    "AveragedModel with buffers": (
        lambda model: AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True
        ),
        AveragedModel.update_parameters,
    ),
}


@pytest.mark.parametrize("tool", AVERAGES)
def test_an_average_over_steps_without_an_update_is_that_of_dense_weights(tool):
    make, update = AVERAGES[tool]
    model = network(0)
    average = make(model)
    update(average, model)
    right = {k: v.clone() for k, v in dense_state_dict(model).items()}
    with torch.no_grad():
        for _ in range(20):
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            update(average, model)
            right = {k: 0.9 * right[k] + 0.1 * v for k, v in dense_state_dict(model).items()}
    found = dense_state_dict(getattr(average, "module", average))
    for name in ("0.weight", "0.bias", "4.weight", "6.weight"):
        torch.testing.assert_close(found[name], right[name], rtol=1e-4, atol=1e-5)


def test_means_of_different_blocks_are_refused():
    model, other = network(0), network(1)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for own, new in zip(average.state_dict().values(), other.state_dict().values()):
            own.copy_((own + new) / 2)
        for own, new in zip(model.state_dict().values(), other.state_dict().values()):
            own.copy_(new)
    with pytest.raises(InputError, match=r"means of block ids.*averages"):
        average(X)


def test_ids_that_are_no_layout_are_refused():
    for broken in (-1, 10**6, 3):
        model = network(0)
        model[0].block_ids.fill_(broken)
        with pytest.raises(InputError, match=r"SparseConv2d.*no layout.*averages=\[\.\.\.\]"):
            model(X)
