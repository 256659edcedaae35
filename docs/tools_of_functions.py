"""Programs of the table of tools: what PyTorch makes of functions, graphs and weights."""

import copy
import pickle

import torch
from tool_rows import X, is_copy, network, tensors, tool
from torch import nn
from torch.func import functional_call, grad, hessian, stack_module_state, vmap
from torch.fx.passes.split_module import split_module
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import sparse_engine
from sparse_engine import dense_state_dict, densify
from sparse_engine.errors import InputError

TORCH = "torch"


@tool(
    "initialisers and writes in place",
    TORCH,
    "`nn.init.*` by `model.apply`, `weight[0] = 0`, `.data.normal_()`, noise on `parameters()`",
)
def writes() -> str:
    model = network(0)
    model.apply(lambda m: nn.init.constant_(m.weight, 2.0) if hasattr(m, "weight") else None)
    assert model[0].values.eq(2).all()
    with torch.no_grad():
        model[0].weight[0] = 0
    assert not model[0].dense_weight()[0].any()
    model[0].weight.data.normal_()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    dense = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    dense.load_state_dict(dense_state_dict(model))
    assert torch.allclose(model(X), dense(X), atol=1e-5)
    return "take effect on weights in active blocks; others stay zero"


@tool(
    "`torch.nn.utils`: `prune`, `weight_norm`, `spectral_norm`, `parametrize`",
    TORCH,
    "on `weight` and `values` of a sparse layer; before `sparsify`",
)
def replaced_weights() -> str:
    for tool_of_torch in (
        lambda m, name: prune.l1_unstructured(m, name, 0.5),
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
    ):
        for name in ("weight", "values"):
            model = network(0)
            try:
                tool_of_torch(model[0], name)
            except InputError:
                assert is_copy(model, network(0))
                continue
            raise AssertionError(f"{name} was replaced")
        dense = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 8))
        tool_of_torch(dense[0], "weight")
        notes = [row.note for row in sparse_engine.sparsify(dense, 0.5, "uniform", (8, 8)).rows]
        assert notes[0].startswith("weight is made by")
    return "refused in a line, the layer as it was; before `sparsify` the layer stays dense"


@tool(
    "`torch.func`",
    TORCH,
    "`grad`, `hessian`, per-sample gradients; `stack_module_state` of equal and of other blocks",
)
def transforms() -> str:
    model = network(0)
    dense = densify(copy.deepcopy(model))
    for call in (
        lambda m: vmap(grad(lambda x: m(x).square().sum()))(X),
        lambda m: hessian(lambda x: m(x).square().sum())(X[0]),
    ):
        assert torch.allclose(call(model), call(dense), atol=1e-5)
    base = copy.deepcopy(model).to("meta")
    for other, is_right in ((copy.deepcopy(model), True), (network(1), False)):
        states = stack_module_state([model, other])
        try:
            found = vmap(lambda p, b: functional_call(base, (p, b), (X,)))(*states)
        except InputError:
            assert not is_right
        else:
            assert is_right
            assert torch.allclose(found[1], other(X), atol=1e-6)
    return "as of dense layers; stacked networks must have the same blocks, others are refused"


@tool(
    "`torch.fx`, `torch.jit`",
    TORCH,
    "`symbolic_trace`, `split_module`, copies and pickles, `DynamicSparsity` and `densify` on a "
    "traced model; `torch.jit.trace`, `torch.jit.script`",
)
def graphs() -> str:
    model = network(0)
    traced = torch.fx.symbolic_trace(model)
    parts = split_module(traced, traced, lambda node: int(node.name != "_0"))
    for copied in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced)), parts):
        assert torch.equal(copied(X), model(X))
    assert torch.equal(torch.jit.trace(model, X)(X), model(X))
    optimizer = torch.optim.SGD(traced.parameters(), lr=0.1)
    dynamic = sparse_engine.DynamicSparsity(traced, optimizer, rule="rigl", interval=2)
    before = model[0].block_ids.clone()
    for _ in range(4):
        traced(X).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        dynamic.step()
    assert not before.equal(model[0].block_ids)
    expected = model(X)
    assert torch.allclose(sparse_engine.densify(traced)(X), expected, atol=1e-6)
    try:
        torch.jit.script(model)
    except ValueError:
        return "a sparse layer is one node, as dense ones are; `torch.jit.script` is refused"
    raise AssertionError("a sparse layer was scripted")


@tool("`torch.compile`", TORCH, "copies before and after compiling")
def compiled() -> str:
    model, original = network(0), network(1)
    for own, other in zip(tensors(model), tensors(original)):
        own.data.copy_(other.data)
    program = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(program(X), original(X))
    for own, other in zip(tensors(model), tensors(network(2))):
        own.data.copy_(other.data)
    said = ""
    try:
        program(X)
    except RuntimeError as error:
        said = str(error)
    assert "sparse_engine.refresh(model)" in said
    sparse_engine.refresh(model)
    assert torch.allclose(program(X), network(2)(X))
    return (
        "looks when it compiles; ids written later stop it on a CPU, until `refresh(model)`;"
        " on a GPU call `refresh(model)` without being told"
    )
