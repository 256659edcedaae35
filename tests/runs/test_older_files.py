"""Files that an earlier version wrote are read, and say what they said then.

tests/fixtures/COMMIT/README.md tells what they are. Logits may differ by the order of sums.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from own_network import own_network

from sparse_engine import DynamicSparsity, TicketEnsemble, evaluate, export, sparsify, train
from sparse_engine.models.build import build_model
from sparse_engine.runs.exported import load_safetensors, load_torch_export
from sparse_engine.training.result import TIMES

FOLDER = Path(__file__).parents[1] / "fixtures" / "f3c2475"
RUNS = ("edst", "rigl", "lottery", "grouped", "sup-tickets", "taps-all", "unstructured")
SUMS = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def expected():
    """Return images [N, 1, 8, 8], and logits [M, N, 10] by the name of a run or file."""
    with np.load(FOLDER / "expected.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture
def older(tmp_path, monkeypatch):
    """Be in a folder with a copy of the files, whose bytes nothing but a resumed run changes."""
    shutil.copytree(FOLDER, tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")


def check(found, wanted):
    torch.testing.assert_close(found, wanted, **SUMS)


def rows_of(run):
    with Path(run, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def result_of(run):
    return json.loads(Path(run, "metrics.json").read_text())


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"resident": False}, {"grouped": True}])
@pytest.mark.parametrize("run", RUNS)
def test_tickets_of_a_run(run, options, expected):
    ensemble = TicketEnsemble.load(FOLDER / run, **options)
    check(ensemble.member_logits(expected["images"]), expected[run])


@torch.no_grad()
def test_one_ticket_of_a_run_that_has_not_ended(expected):
    ensemble = TicketEnsemble.load(FOLDER / "edst-stopped" / "member_1.pt")
    check(ensemble.member_logits(expected["images"]), expected["edst"][:1])


def test_runs_are_evaluated_as_they_were(older, capsys):
    evaluate.main([*RUNS, "--device", "cpu", "--no-compare"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    wanted = json.loads(Path("evaluation.json").read_text())
    assert found.keys() - {"test_set", "test_images", "class_names"} == wanted.keys()
    assert found["runs"] == wanted["runs"]
    # Which added ratios to dense runs of different lengths.
    costs, ratio = dict(found["costs"]), result_of("edst")["train_flops_ratio"]
    assert "different dense runs" in costs.pop("note")
    share = costs["train_flops"] / result_of("edst")["train_flops"]
    assert costs == wanted["costs"] | {"train_flops_ratio": pytest.approx(share * ratio)}
    for name in ("nll", "brier", "kl"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5)
    # An image more or less, of 360.
    assert found["accuracy"] == pytest.approx(wanted["accuracy"], abs=0.003)
    assert found["member_accuracy"] == pytest.approx(wanted["member_accuracy"], abs=0.003)


@pytest.mark.parametrize("run", ["edst", "grouped"])
def test_a_stopped_run_is_resumed(run, older, expected):
    stopped = f"{run}-stopped"
    before, whole = rows_of(stopped), rows_of(run)
    train.main(["--resume", stopped])
    rows = rows_of(stopped)
    assert rows[: len(before)] == before
    same = ("epoch", "step", "phase", "learning_rate", "split")
    assert [[row[n] for n in same] for row in rows] == [[row[n] for n in same] for row in whole]
    # Lost momenta would show here; other sums than of the machine it began on do not. The head's
    # ragged blocks are now chosen among themselves, which the grouped run does before the next row.
    following, wider = len(before), 15 if run == "grouped" else 1
    for name, share in (("train_loss", 0.001 * wider), ("nll", 0.005 * wider)):
        wanted = float(whole[following][name])
        assert float(rows[following][name]) == pytest.approx(wanted, rel=share)
    found, wanted = result_of(stopped), result_of(run)
    assert found.keys() == wanted.keys() | {"dense_epochs", *TIMES}
    assert found["parameters"] == wanted["parameters"]
    # Which did not count the lists of blocks.
    assert found["bytes"] > wanted["bytes"] == 4 * wanted["parameters"]
    # Which counted a ragged block as an average one.
    for name in ("train_flops", "test_flops_ratio"):
        assert found[name] == pytest.approx(wanted[name], rel=0.06)
    assert found["accuracy"] == pytest.approx(wanted["accuracy"], abs=0.1)
    logits = TicketEnsemble.load(stopped).member_logits(expected["images"])
    assert logits.shape == expected[run].shape


def test_a_run_that_has_ended_is_left_alone(older, capsys):
    before = {path.name: path.read_bytes() for path in Path("edst").iterdir()}
    train.main(["--resume", "edst"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result_of("edst")
    assert {path.name: path.read_bytes() for path in Path("edst").iterdir()} == before


@torch.no_grad()
def test_a_compact_ticket(expected):
    images, path = expected["images"], FOLDER / "ticket.safetensors"
    check(expected["ticket.safetensors"], expected["edst"][1:])
    given = build_model("mlp", classes=10, channels=1, height=8, width=8)
    check(load_safetensors(path)(images)[None], expected["edst"][1:])
    check(load_safetensors(path, given)(images)[None], expected["edst"][1:])
    check(TicketEnsemble.load(path).member_logits(images), expected["edst"][1:])


@torch.no_grad()
def test_a_dense_ticket(older, expected):
    state = torch.load("ticket-dense.pt", weights_only=True)
    model = build_model("mlp", classes=10, channels=1, height=8, width=8)
    model.load_state_dict(state)
    check(model(expected["images"])[None], expected["edst"][1:])
    export.main(["edst/member_2.pt", "--format", "dense", "--out", "again.pt"])
    again = torch.load("again.pt", weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@torch.no_grad()
def test_a_program(expected):
    program = load_torch_export(FOLDER / "ticket.pt2")
    check(program(expected["images"])[None], expected["ticket.pt2"])
    check(expected["ticket.pt2"], expected["edst"][1:])


def test_an_onnx_graph(expected):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = str(FOLDER / "ticket.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": expected["images"].numpy()})
    check(torch.from_numpy(found)[None], expected["edst"][1:])


@torch.no_grad()
def test_state_dicts_of_an_own_network(expected):
    sparse, dense = own_network(), own_network().eval()
    sparsify(sparse, 0.6, block=(8, 8))
    sparse.load_state_dict(torch.load(FOLDER / "state.pt", weights_only=True))
    check(sparse.eval()(expected["images"])[None], expected["state"])
    dense.load_state_dict(torch.load(FOLDER / "state-dense.pt", weights_only=True))
    check(dense(expected["images"])[None], expected["state"])


def test_an_own_loop_goes_on(expected):
    model = own_network()
    sparsify(model, 0.6, block=(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    dynamic = DynamicSparsity(model, optimizer, "rigl", interval=2, total_steps=20)
    model.load_state_dict(torch.load(FOLDER / "state.pt", weights_only=True))
    state = torch.load(FOLDER / "state-training.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    dynamic.load_state_dict(state["dynamic"])
    assert dynamic.steps == 6
    updated = []
    for _ in range(2):
        model(expected["images"]).square().mean().backward()
        optimizer.step()
        updated.append(dynamic.step())
        optimizer.zero_grad()
    assert updated == [False, True]
