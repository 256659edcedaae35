"""Exported networks give what the network gives; what cannot be exported is refused in a line."""

import json

import pytest
import torch
from exported_layers import exported
from exported_networks import SIZES, images, network
from safetensors import safe_open
from safetensors.torch import load_file as load_file_of_safetensors
from torch import nn

from sparse_engine import SparseConv2d, dense_state_dict, sparsify
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.models.build import build_model
from sparse_engine.runs.exported import (
    load_safetensors,
    load_torch_export,
    save_dense,
    save_onnx,
    save_safetensors,
    save_torch_export,
)
from sparse_engine.runs.files import load_file, save_file


def test_dense_state_dict(tmp_path):
    save_dense(network(), tmp_path / "dense.pt")
    plain = build_model("wrn10-1", **SIZES)
    plain.load_state_dict(torch.load(tmp_path / "dense.pt", weights_only=True))
    torch.testing.assert_close(plain.eval()(images()), network()(images()))


def test_dense_safetensors_are_as_hugging_face_writes_them(tmp_path):
    model, path = network(), tmp_path / "model.safetensors"
    save_dense(model, path, class_names=["ant", "bee"])
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "class_names": '["ant", "bee"]'}
    found = load_file_of_safetensors(path)
    torch.testing.assert_close(found, dict(dense_state_dict(model)))
    with pytest.raises(InputError, match=r"holds dense weights, not a ticket: read it with safe"):
        load_safetensors(path, model)


@pytest.mark.slow
def test_from_pretrained_reads_dense_safetensors(tmp_path):
    kind = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    model = kind.GPT2LMHeadModel(kind.GPT2Config(**sizes)).eval()
    sparsify(model, 0.5, block=(16, 16))
    model.config.save_pretrained(tmp_path)
    save_dense(model, tmp_path / "model.safetensors")
    loaded, told = kind.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    x = torch.arange(8)[None]
    torch.testing.assert_close(loaded.eval()(x).logits, model(x).logits)


@pytest.mark.parametrize("save", [save_torch_export, save_onnx])
def test_an_example_of_one_input(save, tmp_path):
    with pytest.raises(InputError, match="would fix the size of the batch: give two"):
        save(network(), tmp_path / "x", images(1))


# What the exporter warns of is its own.
@pytest.mark.filterwarnings("ignore")
def test_onnx_gives_the_same(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra 'test')")
    model, path = network(), tmp_path / "ticket.onnx"
    assert save_onnx(model, path, images(2), class_names=["ant", "bee"]) < 1e-4
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = session.get_modelmeta().custom_metadata_map["class_names"]
    assert json.loads(names) == ["ant", "bee"]
    (found,) = session.run(["logits"], {"images": images(5).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(images(5)), rtol=1e-3, atol=1e-4)
    assert isinstance(model.get_submodule("blocks.0.conv2"), SparseConv2d)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_onnx_of_a_sparse_model_gives_the_same(dynamo, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra 'test')")
    import onnxruntime

    (model, (x, more)), path = exported("fused"), tmp_path / "sparse.onnx"
    batch = {"dynamic_axes": {"x": [0], "y": [0]}}
    if dynamo:
        batch = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(model, (x,), path, **names, **batch, dynamo=dynamo)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": more.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(more), rtol=1e-3, atol=1e-4)


def test_onnx_that_gives_something_else_is_not_written(tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra 'test')")
    for error in (0.01, float("nan")):
        monkeypatch.setattr(
            "sparse_engine.runs.exported._onnx_error", lambda *_, error=error: error
        )
        with pytest.raises(RunFailure, match=r"ONNX Runtime differs by .*; nothing was written"):
            save_onnx(nn.Sequential(nn.Linear(4, 4)).eval(), tmp_path / "x.onnx", torch.ones(2, 4))
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs onnx and onnxscript, which are not installed: pip"
    ):
        save_onnx(network(), tmp_path / "x.onnx", images(2))


@pytest.mark.filterwarnings("ignore:No complete tensor")
def test_no_file_holds_memory_that_is_not_the_networks(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    model[0].weight = nn.Parameter(torch.randn(9000, 8)[:8])
    model.register_buffer("wide", torch.ones(1).expand(500))
    save_dense(model, tmp_path / "dense")
    save_torch_export(model, tmp_path / "program", torch.ones(2, 8))
    save_safetensors(model, tmp_path / "compact")
    save_file({"model": model.state_dict()}, tmp_path / "checkpoint")
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 50_000, path
    kept = load_file(tmp_path / "checkpoint")["model"]
    assert torch.equal(kept["0.weight"], model[0].weight)
    assert isinstance(model[0].weight, nn.Parameter)
    x = torch.randn(3, 8)
    assert torch.equal(load_torch_export(tmp_path / "program")(x), model(x))


@pytest.mark.parametrize("save", [save_safetensors, save_dense])
def test_training_mode(save, tmp_path):
    with pytest.raises(InputError, match=r"^the model is in training mode: call model\.eval\(\)"):
        save(network().train(), tmp_path / "x")


@pytest.mark.parametrize("save", [save_torch_export, save_onnx])
def test_a_part_in_training_mode(save, tmp_path):
    model = network()
    model.norm.train()
    with pytest.raises(InputError, match=r"^the model is in training mode"):
        save(model, tmp_path / "x", images(2))
    assert not list(tmp_path.iterdir())
