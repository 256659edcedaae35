"""Crafted files: each is refused for what is wrong with it, and costs neither time nor memory."""

import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from resumed_runs import contents, train_and_kill

from sparse_engine import DynamicSparsity, SparseLinear
from sparse_engine.data.readers import read_npz
from sparse_engine.errors import InputError
from sparse_engine.runs.files import load_file
from sparse_engine.train import main

LTR = ["--method", "ltr", "--rounds", "2", "--members", "2", "--sparsity", "0.6", "--epochs", "6"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Return a folder with runs that were stopped: `rigl`, and `ltr` with kept states."""
    path = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for name, number, flags in (
            ("rigl", 2, ["--method", "rigl", "--epochs", "4"]),
            ("ltr", 8, LTR),
        ):
            train_and_kill(patch, number, *flags)
            Path("out/previous.pt").unlink()
            Path("out").rename(name)
    return path


@pytest.fixture
def refused(stopped, tmp_path, monkeypatch):
    """Return a function that edits a checkpoint and expects an error, and no file changed."""
    monkeypatch.chdir(tmp_path)

    def check(edit, message, name="rigl"):
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree(stopped / name, "out")
        state = load_file(Path("out/last.pt"))
        edit(state)
        torch.save(state, "out/last.pt")
        before = contents("out")
        with pytest.raises(InputError, match=message):
            main(["--resume", "out"])
        assert {**contents("out"), "lock": b""} == {**before, "lock": b""}

    return check


def put(*path):
    """Return an edit that puts a value, made from the one there, at a path."""
    *holders, last, make = path

    def edit(state):
        for key in holders:
            state = state[key]
        state[last] = make(state[last]) if callable(make) else make

    return edit


VALUES, IDS = "hidden1.values", "hidden1.block_ids"
KEPT, MOMENTA = ("kept", "ticket", "model"), ("optimizer", "state", 0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("progress", "step", -5), r"progress.step should be 10 there, found -5"),
        (put("progress", "phase", 7), "progress.phase should be from 0 to 1, found 7"),
        (put("progress", "phase_step", 99), "progress.phase_step should be from 0 to 19, found 99"),
        (put("progress", "tickets", 3), "progress.tickets should be 0 there, found 3"),
        (put("progress", "member", 2), "progress.member should be 0 there, found 2"),
        (put("progress", "train_seconds", math.nan), "progress.train_seconds should be a time"),
        (put("progress", "step", True), "progress.step should be of type int, found True"),
        (put("progress", []), "progress should be an object"),
        (put("config", "lr", torch.ones(2)), "config should hold nothing but what JSON can"),
        (put("model", VALUES, lambda v: v[:0]), r"hidden1.values should be torch.float32 \[Z, BC"),
        (put("model", VALUES, lambda v: v.double()), "hidden1.values should be torch.float32"),
        (put("model", VALUES, lambda v: v.new_zeros(len(v), 400, 400)), "blocks of at most"),
        (put("model", VALUES, lambda v: v.repeat(99, 1, 1)), "at most the 304 blocks"),
        (put("model", VALUES, lambda v: v[1:]), r"block ids should be integer \[67\]"),
        (put("model", IDS, lambda v: v.long()), "block_ids should be int32"),
        (put("model", IDS, lambda v: v + 10**6), "block ids should be from 0 to 304"),
        (put("model", IDS, lambda v: v - 10**6), "block ids should be from 0 to 304"),
        (put("model", IDS, lambda v: v[:1].repeat(len(v))), "found a block in two slots"),
        (put("model", IDS, lambda v: v.fill_(304)), "a block at least should be active"),
        (put("model", {}), "which differ in"),
        (put("optimizer", "state", {}), "optimizer.state should be of the entries"),
        (put(*MOMENTA, "momentum_buffer", lambda v: v[:1]), "momentum_buffer should be"),
        (put("topology", "updates", -1), "topology.updates should be at least 0"),
        (
            put("topology", "ever_active", "hidden1", lambda v: v[:1]),
            "hidden1 should be torch.bool",
        ),
        (put("first_blocks", "hidden1", lambda v: v[:1]), "hidden1 should be torch.uint8"),
        (put("first_blocks", "hidden1", torch.zeros_like), "hidden1 should be a block at least"),
        (put("first_blocks", []), "first_blocks should be an object"),
        (put("topology", "collected", {"zzz": torch.zeros(1)}), "of layers that collect"),
        (put("guard", "_skipped", torch.tensor(math.nan).double()), "_skipped should be a count"),
        (put("guard", "_fatal", torch.tensor(3.0).double()), "guard._fatal should be -1"),
        (put("guard", "scale", torch.zeros(())), "guard.scale should be above 0"),
        (put("kept", {"a": {}}), "kept should be states by name"),
        (put("best", {"accuracy": 0.5}), "best should be an object with accuracy, model"),
        (put("accuracy", "high"), "accuracy should be of type float"),
        (put("accuracy", math.nan), "accuracy should be from 0 to 1"),
        (put("densities", "phases", []), "densities.phases should be a list of 1"),
        (put("densities", "phases", [{"hidden1": "x"}]), "of numbers above 0, at most 1"),
        (put("densities", {"zzz": []}), "densities should be of the entries"),
        (put("device_random_state", torch.zeros(3)), "device_random_state should be bytes"),
        (put("random_state", lambda v: v[:9]), "random_state should be torch.uint8"),
        (put("random_state", torch.zeros_like), "does not fit the data"),
    ],
)
def test_a_crafted_checkpoint_is_refused(edit, message, refused):
    refused(edit, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(*KEPT, IDS, lambda v: v + 10**6), "kept.ticket.model.hidden1: block ids should be"),
        (put("kept", {}), "kept should be states by name"),
        (put("kept", "ticket", "accuracy", 2.0), "kept.ticket.accuracy should be from 0 to 1"),
    ],
)
def test_a_crafted_state_to_rewind_to_is_refused(edit, message, refused):
    refused(edit, message, "ltr")


def test_an_array_that_promises_more_than_its_file_holds_is_refused(tmp_path):
    header = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8)}
    with (
        zipfile.ZipFile(tmp_path / "own.npz", "w") as archive,
        archive.open("train_images.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(InputError, match=r"train_images is damaged .*that is not all there"):
        read_npz(tmp_path / "own.npz")


@pytest.mark.parametrize(
    "odd", [torch.zeros(4, 4, device="meta"), torch.eye(4).to_sparse(), [[0.0] * 4] * 4]
)
@pytest.mark.parametrize("name", ["weight", "values"])
def test_a_state_dict_without_ordinary_tensors_is_refused(name, odd):
    layer = SparseLinear(4, 4, bias=False, density=1.0, block=(2, 2))
    before = layer.state_dict()
    state = {"weight": odd} if name == "weight" else {**before, "values": odd}
    with pytest.raises(RuntimeError, match=f"{name} should be an ordinary tensor"):
        layer.load_state_dict(state)
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in before.items())


def test_a_dynamic_state_of_another_model_is_refused():
    made = []
    for width in (16, 32):
        layer = SparseLinear(16, width, density=0.5, block=(8, 8))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        made.append(DynamicSparsity(layer, optimizer, interval=2))
    state = made[0].state_dict()
    made[0].load_state_dict(state)
    with pytest.raises(InputError, match=r"topology.ever_active. should be torch.bool \[8\]"):
        made[1].load_state_dict(state)
    with pytest.raises(InputError, match=r"state\.steps should be at least 0"):
        made[0].load_state_dict({**state, "steps": -1})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "[1]", "'out/metrics.json' is damaged; delete it"),
        ("metrics.json", '{"a": ', "'out/metrics.json' is damaged; delete it"),
        ("metrics.csv", "a,b\n1,2\n", "'out/metrics.csv' is damaged; move it away"),
        ("blocks.csv", "a,b\n1,2\n", "'out/blocks.csv' is damaged; move it away"),
        ("member_1.pt", "ticket", "'out/member_1.pt' is truncated or not a checkpoint"),
    ],
)
def test_other_files_of_a_run(name, content, message, stopped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stopped / "ltr", "out")
    Path("out", name).write_text(content)
    with pytest.raises(InputError, match=message):
        main(["--resume", "out"])
    assert Path("out", name).read_text() == content


def test_rows_that_were_cut_short_are_left_out(stopped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stopped / "rigl", "out")
    with Path("out/metrics.csv").open("a") as file:
        file.write("9,x,y\n" + ",".join("z" * 10) + "\n3,")
    main(["--resume", "out"])
    assert len(Path("out/metrics.csv").read_text().splitlines()) == 5
    assert json.loads(Path("out/metrics.json").read_text())["epochs"] == 4
