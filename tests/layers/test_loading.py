"""Every way of loading gives the blocks of the file; what moves without loading keeps its own."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from copied_networks import X, assert_same, copy_over, network, tensors
from safetensors.torch import load_file, load_model, save_file, save_model
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from sparse_engine import SparseLinear, dense_state_dict
from sparse_engine.layers.base import SparseLayer


def on_meta(seed):
    with torch.device("meta"):
        return network(seed)


def sparse_layers(model):
    return [m for m in model.modules() if isinstance(m, SparseLayer)]


def test_safetensors(tmp_path):
    original = network(1)
    save_file(original.state_dict(), tmp_path / "a")
    save_model(original, str(tmp_path / "b"))
    model = network(0)
    for name, tensor in load_file(tmp_path / "a").items():
        model.state_dict()[name].copy_(tensor)
    assert_same(model, original)
    for assign in (False, True):
        model = network(0)
        model.load_state_dict(load_file(tmp_path / "a"), assign=assign)
        assert_same(model, original)
    model = network(0)
    load_model(model, str(tmp_path / "b"))
    assert_same(model, original)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_distributed_checkpoints_in_one_process(tmp_path):
    original = network(1)
    dcp.save({"model": original.state_dict()}, checkpoint_id=tmp_path)
    model = network(0)
    dcp.load({"model": model.state_dict()}, checkpoint_id=tmp_path)  # into live tensors
    assert_same(model, original)
    model = network(0)
    dcp.load({"model": model}, checkpoint_id=tmp_path)
    assert_same(model, original)
    for model in (network(0), on_meta(0).to_empty(device="cpu").eval()):
        state = get_model_state_dict(model)
        dcp.load({"model": state}, checkpoint_id=tmp_path)
        set_model_state_dict(model, state)
        assert_same(model, original)


def test_state_dict_helpers():
    original = network(1)
    optimizer = torch.optim.Adam(original.parameters())
    original(X).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    state, of_optimizer = get_state_dict(original, optimizer)
    assert state.keys() == original.state_dict().keys()
    model = network(0)
    own = torch.optim.Adam(model.parameters())
    set_state_dict(model, own, model_state_dict=state, optim_state_dict=of_optimizer)
    assert_same(model, original)
    options, model = StateDictOptions(full_state_dict=True, cpu_offload=True), network(0)
    whole = get_model_state_dict(original, options=options)
    set_model_state_dict(model, whole, options=options)
    assert_same(model, original)


def test_assign_gives_the_very_tensors():
    original = network(1)
    for model in (network(0), on_meta(0)):
        model.load_state_dict(original.state_dict(), assign=True)
        assert_same(model, original)
        assert model[0].values.data_ptr() == original[0].values.data_ptr()


def test_tensors_put_into_a_model_on_the_meta_device_one_by_one():
    original, model = network(1), on_meta(0)
    for own, other in zip(model.modules(), original.modules()):
        own._parameters.update(other._parameters)
        own._buffers.update(other._buffers)
    assert_same(model, original)


@pytest.mark.parametrize("written", [False, True])
def test_blocks_are_kept_where_numbers_are_lost(written):
    model = network(0)
    if written:  # and nobody has looked since
        copy_over(model, network(1))
    ids = [layer.block_ids.clone() for layer in sparse_layers(model)]
    for move in (lambda: model.to_empty(device="cpu"), lambda: model.to("meta")):
        move()
    model.to_empty(device="cpu")
    for layer, kept in zip(sparse_layers(model), ids):
        assert layer.block_ids.equal(kept)
        assert layer.layout.block_ids.equal(kept)
        layer.reset_parameters()
    model.load_state_dict(network(1).state_dict())
    assert_same(model, network(1))


def test_reset_parameters_brings_back_ids_that_were_never_written():
    """As transformers does where a checkpoint lacks a layer: memory as it was found."""
    layer = SparseLinear(32, 32, density=0.5, block=(8, 8), device="meta")
    ids = layer.layout.block_ids.clone()
    layer.values = torch.nn.Parameter(torch.empty(layer.values.shape))
    layer.bias = torch.nn.Parameter(torch.empty(32))
    layer._buffers["block_ids"] = torch.full_like(layer.block_ids, 77, device="cpu")
    layer.reset_parameters()
    assert layer.block_ids.equal(ids)
    assert layer(torch.ones(1, 32)).isfinite().all()


@pytest.mark.parametrize("how", ["half", "double", "bfloat16", "type", "share_memory"])
def test_ids_stay_integers_and_right(how):
    original, model = network(1), network(0)
    copy_over(model, original)
    getattr(model, how)(*([torch.float64] if how == "type" else []))
    assert {layer.block_ids.dtype for layer in sparse_layers(model)} == {torch.int32}
    assert {t.is_shared() for t in tensors(model)} == {how == "share_memory"}
    for name, weight in dense_state_dict(model).items():
        wanted = dense_state_dict(original)[name].to(weight.dtype)
        torch.testing.assert_close(weight, wanted, msg=name)
    model.load_state_dict(network(2).state_dict())
    assert_same(model.float(), network(2)) if how in ("double", "share_memory") else model.float()(
        X
    )


def test_conversion_by_swapping_or_new_parameters():
    for flag in ("swap_module_params", "overwrite_module_params"):
        switch = getattr(torch.__future__, f"set_{flag}_on_conversion")
        switch(True)
        try:
            model = network(0)
            model.load_state_dict(network(1).state_dict())
            assert_same(model.double().float(), network(1))
        finally:
            switch(False)
