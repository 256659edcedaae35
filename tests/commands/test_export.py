"""The command that exports a ticket: what it writes, and what it refuses."""

import sys

import pytest
import torch
from exported_networks import SIZES, images
from ticket_runs import make_run

from sparse_engine import export
from sparse_engine.config.flags import run_command
from sparse_engine.errors import InputError
from sparse_engine.models.build import build_model
from sparse_engine.runs.exported import load_safetensors, load_torch_export


@pytest.fixture
def run(tmp_path):
    make_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["safetensors", "dense", "torch-export", "torch-export-dense"])
def test_the_command(kind, run, tmp_path, capsys):
    wanted = make_run(tmp_path / "again")[1](images())
    out = tmp_path / "file"
    export.main([str(run), "--ticket", "2", "--format", kind, "--out", str(out)])
    assert f"{run / 'member_2.pt'} as {kind}" in capsys.readouterr().out
    if kind == "safetensors":
        found = load_safetensors(out)
    elif kind.startswith("torch-export"):
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
        (["{run}", "--format", "dense", "--out", "{out}"], "has 2 tickets; choose one with --tick"),
        (["{run}", "--format", "dense", "--out", "{out}", "--member", "3"], "from 1 to 2, found 3"),
        (["{run}", "--format", "dense", "--out", "{out}", "--member", "0"], "from 1 to 2, found 0"),
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
