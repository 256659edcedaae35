"""Exported tickets are the same networks, and files that are not are refused in a line."""

import json
import struct
import sys

import pytest
import torch
from ticket_runs import make_run
from torch import nn

from sparse_engine import SparseConv2d, export, sparsify
from sparse_engine.config.flags import run_command
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.layers.base import SparseLayer
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
from sparse_engine.runs.safetensors import read_tensors, write_tensors

SIZES = {"classes": 10, "channels": 1, "height": 8, "width": 8}


def network(sparsity=0.7, **options):
    torch.manual_seed(0)
    model = build_model("wrn10-1", **SIZES)
    if sparsity:
        sparsify(model, sparsity, block=(16, 16), init="random", **options)
    return model.eval()


def images(count=3):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def run(tmp_path):
    make_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def compact(tmp_path):
    path = tmp_path / "ticket.safetensors"
    save_safetensors(network(), path)
    return path


def layouts(model):
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    return {n: (m.block, m.taps, m.layout.block_ids.tolist()) for n, m in layers.items()}


@pytest.mark.parametrize("options", [{}, {"taps": "all"}])
def test_a_compact_file_is_the_same_network(options, tmp_path):
    model, path = network(**options), tmp_path / "ticket.safetensors"
    save_safetensors(model, path)
    for other in (network(0), network(0.3)):
        before = other(images())
        loaded = load_safetensors(path, other)
        assert layouts(loaded) == layouts(model) != {}
        assert torch.equal(loaded(images()), model(images()))
        assert torch.equal(other(images()), before)


def test_spare_slots_are_not_written(tmp_path):
    model, path = network(headroom=0.5), tmp_path / "ticket.safetensors"
    save_safetensors(model, path)
    loaded = load_safetensors(path, network(0))
    assert any(m.layout.slots > m.layout.active for m in model.modules() if hasattr(m, "layout"))
    assert all(m.layout.slots == m.layout.active for m in loaded.modules() if hasattr(m, "layout"))
    assert torch.equal(loaded(images()), model(images()))


def test_data_types_are_kept(tmp_path):
    path = tmp_path / "ticket.safetensors"
    save_safetensors(network().to(torch.bfloat16), path)
    loaded = load_safetensors(path, network(0))
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_sizes_fall_with_density(tmp_path):
    sizes = []
    for sparsity in (0.0, 0.5, 0.9):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(512, 512, bias=False)).eval()
        if sparsity:
            sparsify(model, sparsity, "uniform", block=(32, 32))
        path = tmp_path / f"{sparsity}.safetensors"
        save_safetensors(model, path)
        sizes.append(path.stat().st_size)
    assert sizes[0] == pytest.approx(4 * 512**2, rel=0.01)
    for size, density in zip(sizes[1:], (0.5, 0.1)):
        assert size == pytest.approx(density * sizes[0], rel=0.02)


def test_the_file_is_of_the_format(tmp_path):
    path = tmp_path / "x.safetensors"
    given = {
        "a": torch.arange(6, dtype=torch.int32).reshape(2, 3),
        "b": torch.tensor([1.5, -2], dtype=torch.bfloat16),
        "c": torch.tensor(3.0, dtype=torch.float64),
        "d": torch.empty(0, 4),
        "e": torch.tensor([True, False]),
        "f": torch.arange(6.0).reshape(2, 3).t(),
    }
    write_tensors(given, {"what": "words"}, path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"what": "words"}
    assert (header["a"]["dtype"], header["a"]["shape"]) == ("I32", [2, 3])
    first, last = (8 + length + place for place in header["a"]["data_offsets"])
    assert struct.unpack("<6i", content[first:last]) == (0, 1, 2, 3, 4, 5)
    assert max(e["data_offsets"][1] for e in header.values()) == len(content) - 8 - length
    found, words = read_tensors(path)
    assert words == {"what": "words"}
    assert found.keys() == given.keys()
    assert all(torch.equal(found[n], given[n]) for n in given)
    assert all(found[n].dtype == given[n].dtype for n in given)


def header_changed(change):
    """Return what gives a file another header."""

    def damage(content):
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        text = json.dumps(change(header) or header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    return damage


def set_shape(header):
    header["stem.weight"]["shape"] = [1]


def negative_shape(header):
    header["stem.weight"]["shape"] = [-1, -144]


def overlap(header):
    entries = [e for e in header.values() if "data_offsets" in e]
    entries[1]["data_offsets"] = entries[0]["data_offsets"]


def hole(content):
    """Leave eight bytes without a tensor before the last one's numbers."""

    def move(header):
        entry = max(
            (e for e in header.values() if "data_offsets" in e), key=lambda e: e["data_offsets"]
        )
        places.append(entry["data_offsets"][0])
        entry["data_offsets"] = [place + 8 for place in entry["data_offsets"]]

    places = []
    changed = header_changed(move)(content)
    start = 8 + int.from_bytes(changed[:8], "little") + places[0]
    return changed[:start] + bytes(8) + changed[start:]


def unknown_type(header):
    header["stem.weight"]["dtype"] = "F13"


DAMAGES = {
    "empty": lambda content: b"",
    "cut header": lambda content: content[:40],
    "cut numbers": lambda content: content[:-1],
    "more numbers": lambda content: content + b"0",
    "a long header": lambda content: b"\xff" * 8 + content[8:],
    "no JSON": lambda content: content[:8] + b"?" + content[9:],
    "a list": header_changed(lambda header: [1]),
    "words": header_changed(lambda header: {"a": "b"}),
    "shape": header_changed(set_shape),
    "negative": header_changed(negative_shape),
    "overlap": header_changed(overlap),
    "hole": hole,
    "type": header_changed(unknown_type),
    "a picture": lambda content: b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_corrupt_file(name, compact):
    compact.write_bytes(DAMAGES[name](compact.read_bytes()))
    with pytest.raises(InputError, match=r"is truncated or no safetensors file: .*export it again"):
        load_safetensors(compact, network(0))


def metadata_changed(**words):
    def change(header):
        header["__metadata__"] |= words

    return header_changed(change)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"format": "sparse-engine-compact-9"}, "is of version sparse-engine-compact-9, and spars"),
        ({"format": ""}, "is of no version of this program"),
        ({"layers": "?"}, "cannot be loaded"),
        ({"layers": "[]"}, "cannot be loaded"),
        ({"layers": '{"stem": {"shape": [1, 1], "block": [16, 16], "taps": "each"}}'}, "cannot be"),
    ],
)
def test_other_words(words, message, compact):
    compact.write_bytes(metadata_changed(**words)(compact.read_bytes()))
    with pytest.raises(InputError, match=message):
        load_safetensors(compact, network(0))


def test_blocks_that_do_not_fit(compact):
    tensors, words = read_tensors(compact)
    name = next(n for n in tensors if n.endswith("block_ids"))
    tensors[name] = tensors[name] * 0
    write_tensors(tensors, words, compact)
    with pytest.raises(InputError, match="block ids should be distinct"):
        load_safetensors(compact, network(0))


def test_another_network_stays_as_it_was(compact):
    other = sparsified = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_safetensors(compact, other)
    assert isinstance(sparsified[0], nn.Linear)
    with pytest.raises(InputError, match="says no architecture"):
        load_safetensors(compact)
    with pytest.raises(InputError, match="cannot be read"):
        load_safetensors(compact.with_name("none"))


def test_a_type_the_format_lacks(tmp_path):
    with pytest.raises(InputError, match=r"cannot hold this network: torch.complex128"):
        write_tensors({"z": torch.zeros(1, dtype=torch.complex128)}, {}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_tensors_that_share_memory(tmp_path):
    """Tied weights are written twice."""
    both = torch.arange(6.0)
    write_tensors({"a": both, "b": both, "c": both[2:]}, {}, tmp_path / "x")
    found, words = read_tensors(tmp_path / "x")
    assert (found["b"].tolist(), found["c"].tolist(), words) == (both.tolist(), [2, 3, 4, 5], {})


def test_a_file_that_earlier_versions_wrote(tmp_path):
    """Their numbers lay in the order of the network, so at any place in the file."""
    flag = {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}
    header = {"flag": flag, "count": {"dtype": "I64", "shape": [], "data_offsets": [1, 9]}}
    text = json.dumps(header).encode()
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\1" + struct.pack("<q", -5))
    found, _ = read_tensors(path)
    assert (found["flag"].tolist(), found["count"].item()) == ([True], -5)


def test_a_checkpoint_of_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr("sparse_engine.runs.files.FORMAT", "sparse-engine-7")
    save_file({}, tmp_path / "member_1.pt")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"is of version sparse-engine-7, this .* sparse-engine-1"):
        load_file(tmp_path / "member_1.pt")


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
    assert save_onnx(model, path, images(2)) < 1e-4
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
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
    with pytest.raises(InputError, match=r"needs onnx and onnxscript; install the extra 'export'"):
        save_onnx(network(), tmp_path / "x.onnx", images(2))


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


@pytest.mark.parametrize("kind", ["safetensors", "dense", "torch-export"])
def test_the_command(kind, run, tmp_path, capsys):
    wanted = make_run(tmp_path / "again")[1](images())
    out = tmp_path / "file"
    export.main([str(run), "--member", "2", "--format", kind, "--out", str(out)])
    assert f"{run / 'member_2.pt'} as {kind}" in capsys.readouterr().out
    if kind == "safetensors":
        found = load_safetensors(out)
    elif kind == "torch-export":
        found = load_torch_export(out)
    else:
        found = build_model("mlp", **SIZES).eval()
        found.load_state_dict(torch.load(out, weights_only=True))
    torch.testing.assert_close(found(images()), wanted)


def test_the_command_takes_what_it_has_written(run, tmp_path):
    compact, out = tmp_path / "x.safetensors", tmp_path / "x.pt"
    given = [str(run), "--member", "2", "--format", "safetensors", "--out", str(compact)]
    export.main(given)
    export.main([str(compact), "--format", "dense", "--out", str(out)])
    export.main([str(run / "member_2.pt"), "--format", "dense", "--out", str(tmp_path / "y.pt")])
    found, wanted = (torch.load(f, weights_only=True) for f in (out, tmp_path / "y.pt"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_files_of_a_run_are_never_written_over(run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for name in before:
        given = [str(run), "--member", "1", "--format", "safetensors", "--out", str(run / name)]
        with pytest.raises(InputError, match=f"{name}' is a file of a run; name another"):
            export.main(given)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_the_command_takes_one_ticket(run, tmp_path):
    out = tmp_path / "file"
    export.main([str(run / "member_1.pt"), "--format", "dense", "--out", str(out)])
    state = torch.load(out, weights_only=True)
    assert state.keys() == build_model("mlp", **SIZES).state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--out", "{out}"], "--format"),
        (["{run}", "--format", "zip", "--out", "{out}"], "invalid choice: 'zip'"),
        (["{run}", "--format", "dense", "--out", "{out}"], "has 2 tickets; choose one with --mem"),
        (["{run}", "--format", "dense", "--out", "{out}", "--member", "3"], "from 1 to 2, found 3"),
        (["{run}", "--format", "dense", "--out", "{run}", "--member", "1"], "is a folder"),
        (["{run}", "--format", "dense", "--out", "{out}/x", "--member", "1"], "no folder"),
        (["{run}/none", "--format", "dense", "--out", "{out}"], "is not a run folder"),
    ],
)
def test_bad_input_at_the_command_line(arguments, message, run, tmp_path):
    given = [text.format(run=run, out=tmp_path / "file") for text in arguments]
    with pytest.raises(InputError, match=message):
        export.main(given)
    assert not (tmp_path / "file").exists()


def test_exit_code_2(run, tmp_path, monkeypatch, capsys):
    (run / "member_1.pt").write_bytes(b"damaged")
    given = [str(run), "--member", "1", "--format", "dense", "--out", str(tmp_path / "x.pt")]
    monkeypatch.setattr(sys, "argv", ["export", *given])
    with pytest.raises(SystemExit) as stop:
        run_command(export.main)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: checkpoint") for line in lines] == [True]
    assert not (tmp_path / "x.pt").exists()
