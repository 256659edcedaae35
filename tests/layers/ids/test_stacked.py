"""Networks under torch.func: stacks of them, other networks' states, and layers about to change."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

from sparse_engine import DynamicSparsity, SparseLinear, densify, sparsify, to_rows
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_kernels.operators.reference import block_norms, gather_blocks

# Of PyTorch's own: it scripts its formulas when forward AD is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")
X = torch.linspace(-1, 1, 5 * 3 * 6 * 6).view(5, 3, 6, 6)


def network(blocks, weights=0):
    torch.manual_seed(blocks)
    convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    model = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(72, 8))
    sparsify(model, 0.5, "uniform", (4, 4), init="random")
    torch.manual_seed(weights)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def bases(models):
    """Yield networks that a stack is called with."""
    yield models[0]
    yield network(9)
    yield copy.deepcopy(models[0]).to("meta")
    yield network(9).to("meta")


def test_stacked_networks_of_the_same_blocks():
    models = [network(1, weights) for weights in range(3)]
    states = stack_module_state(models)
    loss = lambda p, b, base: functional_call(base, (p, b), (X,)).square().sum()  # noqa: E731
    for base in bases(models):
        found = vmap(lambda p, b: functional_call(base, (p, b), (X,)), chunk_size=2)(*states)  # noqa: B023
        torch.testing.assert_close(found, torch.stack([model(X) for model in models]))
        gradients = vmap(grad(loss), (0, 0, None))(*states, base)
    for number, model in enumerate(models):
        model(X).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name][number], parameter.grad)


def test_stacked_networks_of_different_blocks_are_refused():
    models = [network(seed, seed) for seed in (1, 2)]
    states = stack_module_state(models)
    for base in bases(models):
        with pytest.raises(InputError, match="have different ones: call the networks one after"):
            vmap(lambda p, b: functional_call(base, (p, b), (X,)))(*states)  # noqa: B023


def test_a_base_without_numbers_needs_the_buffers():
    models = [network(1, weights) for weights in range(2)]
    parameters, _ = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    with pytest.raises(InputError, match="give functional_call the buffers too"):
        vmap(lambda p: functional_call(base, p, (X,)))(parameters)
    with pytest.raises(InputError, match="give functional_call the buffers too"):
        functional_call(base, dict(models[1].named_parameters()), (X,))
    base[3].values = nn.Parameter(models[1][3].values.detach())  # a layer that is given them stays
    assert not base[3].block_ids.is_meta


def test_the_state_of_another_network():
    other = network(2, 2)
    for base in (network(1), copy.deepcopy(network(1)), copy.deepcopy(other).to("meta")):
        called = lambda x: functional_call(base, other.state_dict(), (x,))  # noqa: B023, E731
        assert called(X).equal(other(X))
        found, wanted = (grad(lambda x, f=f: f(x).sin().sum())(X) for f in (called, other))
        torch.testing.assert_close(found, wanted)
    # Ids that are one less, as those of a rounded mean would be.
    one = SparseLinear(16, 16, density=0.05, block=(4, 4))
    own, less = copy.deepcopy(one), copy.deepcopy(one)
    less.change_blocks_((one.layout.block_ids - 1) % 16)
    x = torch.randn(2, 16)
    assert functional_call(own, less.state_dict(), (x,)).equal(less(x))


def test_layers_as_dense_ones():
    model = network(3, 3)
    dense = densify(copy.deepcopy(model))
    rows = to_rows(copy.deepcopy(model))
    calls = (
        jacrev,
        lambda f: vmap(lambda x: jvp(lambda x: f(x[None]), (x,), (x.sin(),))),
        lambda f: lambda x: torch.autograd.functional.hvp(lambda x: f(x).sin().sum(), x, x),
    )
    for call in calls:
        for sparse in (model, rows):
            torch.testing.assert_close(call(sparse)(X), call(dense)(X))


class ReadsWeight(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x @ self.layer.weight.T


@pytest.mark.parametrize("block", [(4, 4), (1, 1)])
def test_weights_that_are_read(block):
    layer = SparseLinear(7, 5, density=0.4, block=block, bias=False)
    reads, x = ReadsWeight(layer), torch.randn(3, 7)
    many = torch.stack([layer.values, 2 * layer.values]).detach()
    for inner in (lambda f: f, jacrev, lambda f: lambda v: jvp(f, (v,), (v,))[1]):
        by_weight = inner(lambda v: functional_call(reads, {"layer.values": v}, (x,)))
        by_operator = inner(lambda v: functional_call(layer, {"values": v}, (x,)))
        torch.testing.assert_close(vmap(by_weight)(many), vmap(by_operator)(many))


def loss_of(model):
    return model(X).square().sum()


def assigned(model):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = grad(lambda p: functional_call(model, p, (X,)).square().sum())(parameters)
    for name, parameter in model.named_parameters():
        parameter.grad = found[name]


def added_to(model):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = grad(lambda p: functional_call(model, p, (X,)).sum())(parameters)
    loss_of(model).backward()
    for name, parameter in model.named_parameters():
        parameter.grad.add_(found[name])


def penalty(model):
    slopes = vmap(grad(lambda x: model(x[None]).square().sum()))(X)
    (loss_of(model) + slopes.square().sum()).backward()


def penalty_on_tangents(model):
    (loss_of(model) + jvp(model, (X,), (X.sin(),))[1].square().sum()).backward()


def batched(model):
    y, parameters = model(X), list(model.parameters())
    many = torch.stack([y.detach(), torch.ones_like(y)])
    found = torch.autograd.grad(y, parameters, many, is_grads_batched=True)
    for parameter, gradients in zip(parameters, found):
        parameter.grad = gradients.sum(0)


def thrown_away(model):
    penalty(model)
    model.zero_grad()
    loss_of(model).backward()


def looked_at(model):
    jacrev(model)(X)
    loss_of(model).backward()


IS_SEEN = {assigned: False, added_to: False, penalty: False, penalty_on_tangents: False,
           batched: False, thrown_away: True, looked_at: True}  # fmt: skip


@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("step", IS_SEEN, ids=lambda step: step.__name__)
def test_scores_are_right_or_there_are_none(step, accumulate):
    model = network(4, 4)
    dense = densify(copy.deepcopy(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamic = DynamicSparsity(model, optimizer, "rigl", interval=1, accumulate=accumulate)
    step(model)
    step(dense)
    is_seen = IS_SEEN[step] and (accumulate or step is not thrown_away)
    for layer, twin in zip(model, dense):
        if isinstance(layer, SparseLayer):
            wanted, sizes = twin.weight.grad.reshape(layer.layout.shape), layer.layout.sizes()
            stored = gather_blocks(wanted, layer.layout.tensors(), sizes)
            torch.testing.assert_close(layer.values.grad, stored, rtol=1e-4, atol=1e-4)
            if is_seen:
                norms = block_norms(wanted, sizes)
                torch.testing.assert_close(layer.collected, norms, rtol=1e-4, atol=1e-4)
    optimizer.step()
    optimizer.zero_grad()
    assert dynamic.step() == is_seen
    said = "updated" if is_seen else "took no part in the step"
    assert set(dynamic.last_update.values()) == {said}
