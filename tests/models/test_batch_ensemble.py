"""BatchEnsemble: member i is a network with the weights W * outer(s_i, r_i), and W is shared."""

import copy

import pytest
import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.batch_ensemble import (
    BatchEnsemble,
    MemberBatchNorm,
    RankOneLayer,
)
from sparse_engine.models.build import build_model
from sparse_engine.runs.model import dense_model
from sparse_engine.sparsity.sparsify import sparsify
from sparse_engine.training.network import build_network

MEMBERS = 3
CPU = torch.device("cpu")


def ensemble(name="wrn10-1", sparsity=0.0, **settings):
    """Return a BatchEnsemble in float64 whose members differ in all that they may."""
    torch.manual_seed(0)
    sizes = {"classes": 5, "channels": 3, "height": 8, "width": 8}
    network = BatchEnsemble(build_model(name, **sizes, **settings), MEMBERS)
    if sparsity:
        sparsify(network, sparsity, block=(4, 4))
    for module in network.modules():
        if isinstance(module, RankOneLayer | nn.BatchNorm2d):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.double().eval()


def member_by_hand(network, index):
    """Return an ordinary model with the effective weights of a member."""
    model = copy.deepcopy(network.model)
    for name, module in list(model.named_modules()):
        if isinstance(module, MemberBatchNorm):
            model.set_submodule(name, module.norms[index])
        elif isinstance(module, RankOneLayer):
            shared = module.shared
            layer = shared.to_dense() if isinstance(shared, SparseLayer) else copy.deepcopy(shared)
            factor = torch.outer(module.s[index], module.r[index]).detach()
            weight = layer.weight.detach()
            layer.weight = nn.Parameter(
                weight * factor.view(*factor.shape, *[1] * (weight.ndim - 2))
            )
            layer.bias = None if module.bias is None else nn.Parameter(module.bias[index])
            model.set_submodule(name, layer)
    assert not any(isinstance(m, RankOneLayer | MemberBatchNorm) for m in model.modules())
    return model


@pytest.mark.parametrize("name", ["wrn10-1", "resnet8", "mlp", "torchvision/resnet18"])
def test_effective_weights_are_rank_one_multiples_of_the_shared_ones(name):
    network, x = ensemble(name), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = network.member_logits(x)
    assert found.shape == (MEMBERS, 4, 5)
    for index in range(MEMBERS):
        torch.testing.assert_close(found[index], member_by_hand(network, index)(x))
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_the_shared_weights_may_be_sparse():
    network, x = ensemble(sparsity=0.6), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    assert sum(isinstance(m, SparseLayer) for m in network.modules()) >= 4
    found = network.member_logits(x)
    for index in range(MEMBERS):
        torch.testing.assert_close(found[index], member_by_hand(network, index)(x))


def test_in_training_each_image_is_seen_by_one_member():
    network, x, y = ensemble(), torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 5
    logits, labels = network.training_pair(x, y)
    assert torch.equal(labels, y)
    everyone = network.member_logits(x)
    owners = [0, 0, 0, 1, 1, 1, 2, 2]
    for image, owner in enumerate(owners):
        torch.testing.assert_close(logits[image], everyone[owner, image])
    # What the second member sees moves its own factors, its own norms, and the shared weights.
    logits[3:6].square().sum().backward()
    layer, norm = network.model.blocks[0].conv1, network.model.blocks[0].norm1
    for parameter in (layer.r, layer.s, network.model.classifier.bias):
        assert [bool(row.any()) for row in parameter.grad] == [False, True, False]
    assert [bool(n.weight.grad.any()) for n in norm.norms] == [False, True, False]
    assert layer.shared.weight.grad.any()


def test_statistics_of_a_norm_are_those_of_its_members_images():
    norm = MemberBatchNorm(nn.BatchNorm2d(2, momentum=1.0), 3)
    x = torch.randn(7, 2, 3, 3)
    norm(x)
    for member, images in zip(norm.norms, (x[:3], x[3:5], x[5:])):
        torch.testing.assert_close(member.running_mean, images.mean((0, 2, 3)))


def config_for(**settings):
    return resolve(Config(method="batch-ensemble", model="wrn10-1", **settings))


def test_members_begin_as_random_signs():
    network = build_network(config_for(seed=1), TABLE["digits"], CPU).model
    layer = network.model.blocks[2].conv2
    for factors in (layer.r, layer.s):
        assert set(factors.flatten().tolist()) == {-1.0, 1.0}
        assert not torch.equal(factors[0], factors[1])
        assert not torch.equal(factors[1], factors[2])


@pytest.mark.parametrize("loaded", [False, True])
def test_weight_decay_is_for_all_but_the_factors(loaded):
    network = build_network(config_for(weight_decay=0.5, momentum=0.0), TABLE["digits"], CPU)
    if loaded:
        network.load({k: v.clone() for k, v in network.model.state_dict().items()})
    before = {n: p.detach().clone() for n, p in network.model.named_parameters()}
    for parameter in network.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    network.optimizer.step()
    factors = 0
    for name, parameter in network.model.named_parameters():
        is_factor = name.endswith((".r", ".s"))
        factors += is_factor
        expected = before[name] if is_factor else 0.95 * before[name]
        torch.testing.assert_close(parameter.detach(), expected)
    assert factors == 2 * sum(isinstance(m, RankOneLayer) for m in network.model.modules())


def test_a_model_with_other_parameters_is_refused():
    config = resolve(
        Config(method="batch-ensemble", dataset="imagenet", model="torchvision/vit_b_16")
    )
    with (
        torch.device("meta"),
        pytest.raises(InputError, match="batch-ensemble cannot give members to a Vis"),
    ):
        dense_model(config, TABLE["imagenet"])
