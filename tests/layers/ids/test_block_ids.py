"""Who looks at block ids when: compilers, tracers, and a GPU, where a look would wait."""

import copy

import pytest
import torch
from copied_networks import X, assert_same, copy_over, network
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import sparse_engine
from sparse_engine.errors import InputError
from sparse_engine.layers.ids import block_ids, replicas


@pytest.fixture
def far(monkeypatch):
    """Block ids are as on a GPU, where a look at numbers would wait."""
    monkeypatch.setattr(block_ids, "_would_wait", lambda ids: True)


def written_over():
    model = network(0)
    copy_over(model, network(1))
    return model


def test_compiled_code_follows_what_was_written_before_and_tells_of_what_is_written_later():
    torch._dynamo.reset()
    model, original = written_over(), network(1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), original(X))
    copy_over(model, network(2))
    with pytest.raises(RuntimeError, match=r"block_ids: call sparse_engine.refresh\(model\)"):
        compiled(X)
    sparse_engine.refresh(model)
    torch.testing.assert_close(compiled(X), network(2)(X))
    compiled.load_state_dict({f"_orig_mod.{k}": v for k, v in original.state_dict().items()})
    torch.testing.assert_close(compiled(X), original(X))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_traced_programs_have_the_blocks_that_were_written():
    wanted = network(1)(X)
    exported = torch.export.export(written_over(), (X,), strict=True).module()
    assert not any("assert" in str(node.target) for node in exported.graph.nodes)
    for program in (exported, torch.jit.trace(written_over(), (X,)), make_fx(written_over())(X)):
        torch.testing.assert_close(program(X), wanted)


def test_a_look_is_not_counted():
    with FlopCounterMode(display=False) as counter:
        torch.testing.assert_close(written_over()(X), network(1)(X))
    assert not any("equal" in str(op) for op in counter.get_flop_counts()["Global"])


def test_a_gpu_is_looked_at_where_a_write_left_a_trace(far):
    for write in ("copy_", "set_", "replace"):
        model, original = network(0), network(1)
        model(X)
        with torch.no_grad():
            for own, other in zip(model.modules(), original.modules()):
                for name, tensor in {**other._parameters, **other._buffers}.items():
                    if write == "replace":
                        kept = own._parameters if name in own._parameters else own._buffers
                        kept[name] = copy.deepcopy(tensor)
                    elif tensor is not None:
                        getattr(getattr(own, name), write)(tensor.detach().clone())
        assert_same(model, original)


def test_a_gpu_needs_refresh_where_it_left_none(far):
    model, original = network(0), network(1)
    wrong = model(X)
    copy_over(model, original)
    assert not torch.equal(model(X), original(X))
    sparse_engine.refresh(model)
    assert_same(model, original)
    assert not torch.equal(model(X), wrong)
    model[0].block_ids.data.fill_(3)
    with pytest.raises(InputError, match="SparseConv2d that are no layout"):
        sparse_engine.refresh(model)


def test_a_gpu_does_not_wait_for_what_ddp_sends_in_every_forward(far, monkeypatch):
    model = network(0)
    model(X)
    monkeypatch.setattr(replicas, "is_sent", lambda: True)
    compared = []
    monkeypatch.setattr(block_ids, "same_numbers", lambda *tensors: compared.append(tensors))
    model[0].block_ids.add_(0)  # one version more, as torch up to 2.13 leaves it
    model(X)
    assert not compared
    model[0].block_ids.copy_(network(1)[0].block_ids)
    with pytest.raises(RuntimeError, match="block_ids of processes differ"):
        model(X)
