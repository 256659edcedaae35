"""Sparse layers are one node in graphs of torch.fx, where they train and change as before."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.fx.passes.split_module import split_module
from torchvision.models.feature_extraction import create_feature_extractor

from sparse_engine import DynamicSparsity, densify, sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer


class AllThrough(fx.Tracer):
    def is_leaf_module(self, module, name):
        return False


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def sparse(model):
    sparsify(model, 0.5, "uniform", (8, 8))
    return model


X = torch.linspace(-1, 1, 64).view(4, 16)


def test_a_traced_model_computes_trains_changes_and_becomes_dense():
    model = sparse(network())
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    for traced in (fx.symbolic_trace(model), fx.GraphModule(model, AllThrough().trace(model))):
        assert sum(isinstance(m, SparseLayer) for m in traced.modules()) == 2
        assert traced(X).equal(model(X))
        twin = copy.deepcopy(traced)
        twin(X).square().sum().backward()
        model.zero_grad()
        model(X).square().sum().backward()
        for own, other in zip(twin.parameters(), model.parameters(), strict=True):
            assert own.grad.equal(other.grad)
    twins = []
    for twin in (copy.deepcopy(model), fx.symbolic_trace(copy.deepcopy(model))):
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        dynamic = DynamicSparsity(twin, optimizer, rule="rigl", interval=2, total_steps=20)
        for _ in range(6):
            optimizer.zero_grad()
            twin(X).square().sum().backward()
            optimizer.step()
            dynamic.step()
        twins.append(twin)
    assert not twins[0][0].block_ids.equal(model[0].block_ids)
    for first, second in zip(twins[0].state_dict().values(), twins[1].state_dict().values()):
        assert first.equal(second)
    dense = densify(twins[1])
    assert not any(isinstance(m, SparseLayer) for m in dense.modules())
    torch.testing.assert_close(dense(X), twins[0](X))


def test_graphs_are_pickled_split_and_made_sparse():
    traced = sparse(fx.symbolic_trace(network()))
    assert pickle.loads(pickle.dumps(traced))(X).equal(traced(X))
    parts = split_module(traced, traced, lambda node: int(node.name != "_0"))
    assert parts(X).equal(traced(X))
    assert any(isinstance(m, SparseLayer) for m in parts.submod_0.modules())


def test_features_of_torchvisions_networks_are_extracted():
    model = sparse(torchvision.models.resnet18(num_classes=10))
    extractor = create_feature_extractor(model.eval(), ["layer1.0.conv1", "fc"])
    images = torch.zeros(1, 3, 32, 32)
    assert extractor(images)["fc"].equal(model(images))
    model = torchvision.models.VisionTransformer(32, 16, 1, 2, 32, 64, num_classes=10)
    traced = fx.symbolic_trace(sparse(model.eval()))
    assert traced(images).equal(model(images))
    extractor = create_feature_extractor(model, ["encoder.layers.encoder_layer_0.mlp"])
    assert next(iter(extractor(images).values())).shape == (1, 5, 32)


@pytest.mark.filterwarnings("ignore")
def test_jit_traces_and_script_is_refused():
    model = sparse(network())
    assert torch.jit.trace(model, X)(X).equal(model(X))
    with pytest.raises(InputError, match=r"torch\.jit\.script cannot compile a SparseLinear"):
        torch.jit.script(model)
