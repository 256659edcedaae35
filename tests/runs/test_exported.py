"""Exported networks give what the network gives; what cannot be exported is refused in a line."""

import json

import pytest
import torch
from exported_networks import SIZES, images, network
from torch import nn

from sparse_engine import SparseConv2d
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.models.build import build_model
from sparse_engine.runs.exported import (
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


def test_torch_export_keeps_the_operators(tmp_path):
    model, path = network(), tmp_path / "ticket.pt2"
    save_torch_export(model, path, images(2))
    loaded = load_torch_export(path)
    for count in (2, 5):
        torch.testing.assert_close(loaded(images(count)), model(images(count)))
    called = {str(node.target) for node in loaded.graph.nodes}
    assert "sparse_kernels.conv2d.default" in called


def test_what_is_no_program(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_torch_export(tmp_path / "none.pt2")
    (tmp_path / "x.pt2").write_bytes(b"no program")
    with pytest.raises(InputError, match=r"is no program of torch\.export"):
        load_torch_export(tmp_path / "x.pt2")
    torch.save({}, tmp_path / "y.pt2")
    with pytest.raises(InputError, match=r"is no program of torch\.export"):
        load_torch_export(tmp_path / "y.pt2")


@pytest.mark.parametrize("save", [save_torch_export, save_onnx])
def test_an_example_of_one_input(save, tmp_path):
    with pytest.raises(InputError, match="would fix the size of the batch: give two"):
        save(network(), tmp_path / "x", images(1))


def test_what_torch_cannot_export(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match=r"torch\.export cannot export this model"):
        save_torch_export(Branching().eval(), tmp_path / "x.pt2", images())
    assert not list(tmp_path.iterdir())


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
