"""Any set of runs as one ensemble."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_engine import evaluate, train
from sparse_engine.checkpoint import load_file
from sparse_engine.config import Config, read_config_file
from sparse_engine.data.load import load_dataset
from sparse_engine.metrics import classification_metrics, disagreement
from sparse_engine.network import build_network

FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
SCORES = ("accuracy", "nll", "ece", "brier")
RUNS = {
    "edst": ["--method", "edst", "--epochs", "9", "--sparsity", "0.5"],
    "rigl": ["--method", "rigl", "--epochs", "4", "--block", "1x1", "--seed", "1"],
    "dense": ["--method", "dense", "--epochs", "2", "--model", "wrn10-1", "--dtype", "bf16"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder that holds RUNS, trained."""
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in RUNS.items():
        train.main([*FLAGS, *flags, "--out", str(folder / name)])
    return folder


@pytest.fixture
def evaluated(runs, monkeypatch, capsys):
    """Evaluate runs by name: the lines printed, and the JSON object of the last."""
    monkeypatch.chdir(runs)

    def call(*arguments):
        evaluate.main([*arguments, "--device", "cpu"])
        lines = capsys.readouterr().out.splitlines()
        return lines, json.loads(lines[-1])

    return call


def predict_by_hand(run):
    """Return the softmax probabilities of each ticket of a run on the digits' test split."""
    config, data = Config(**read_config_file(f"{run}/config.json")), load_dataset("digits", None)
    images = data.test.images.float() / 255
    x = (images - data.info.mean[0]) / data.info.std[0]
    found = []
    for path in sorted(Path(run).glob("member_*.pt")):
        model = build_network(config, data.info, torch.device("cpu")).model.eval()
        model.load_state_dict(load_file(path, "model")["model"])
        with torch.no_grad():
            found.append(model(x).softmax(1))
    return found, data.test.labels


@pytest.mark.parametrize("name", ["edst", "rigl"])
def test_one_run_gives_its_own_result(name, evaluated):
    own = json.loads(Path(name, "metrics.json").read_text())
    _, found = evaluated(name)
    assert (found["dataset"], found["runs"]) == ("digits", [name])
    for key in (*SCORES, "member_accuracy"):
        assert found[key] == own[key]
    assert found.get("disagreement") == own["disagreement"]
    assert found.get("kl") == own["kl"]


def test_two_runs_are_the_mean_of_all_their_tickets(evaluated):
    _, found = evaluated("edst", "rigl")
    first, labels = predict_by_hand("edst")
    members = [*first, *predict_by_hand("rigl")[0]]
    assert len(members) == len(found["members"]) == 4
    expected = classification_metrics(torch.stack(members).double().mean(0), labels)
    assert {k: found[k] for k in SCORES} == pytest.approx({k: expected[k] for k in SCORES}, 1e-4)
    for scores, accuracy, member in zip(
        found["members"], found["member_accuracy"], members, strict=True
    ):
        assert scores["accuracy"] == accuracy == classification_metrics(member, labels)["accuracy"]
        assert set(scores) == set(SCORES)
    pairs = [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]
    mean = sum(disagreement(a, b) for a, b in pairs) / len(pairs)
    assert found["disagreement"] == pytest.approx(mean)
    assert found["kl"] >= 0


def test_runs_of_other_models_and_dtypes_mix(evaluated):
    _, found = evaluated("dense", "rigl")
    assert len(found["members"]) == 2
    assert found["member_accuracy"][0] == evaluated("dense")[1]["accuracy"]


def test_the_table_sets_members_beside_their_ensemble(evaluated):
    lines, found = evaluated("edst", "rigl")
    table = [line.rsplit(maxsplit=4) for line in lines[1:-1]]
    assert lines[0].split() == list(SCORES)
    names = [*(f"member {number}" for number in range(1, 5)), "mean of members", "ensemble"]
    assert [row[0] for row in table] == names
    assert table[-1][1:] == [f"{found[name]:.4f}" for name in SCORES]
    assert table[-2][1] == f"{sum(found['member_accuracy']) / 4:.4f}"
    assert len(evaluated("rigl")[0]) == 3


def test_nothing_is_written(runs, evaluated):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    evaluated("edst", "rigl")
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_a_run_of_another_backend_is_evaluated_with_what_there_is(evaluated):
    path = Path("rigl/config.json")
    settings = path.read_text()
    path.write_text(json.dumps({**json.loads(settings), "backend": "triton"}))
    assert len(evaluated("rigl")[1]["members"]) == 1
    path.write_text(settings)


def test_data_dir_says_where_the_data_has_moved(runs, evaluated, tmp_path, capsys):
    splits = {}
    for split in ("train", "test"):
        splits[f"{split}_images"] = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8)
        splits[f"{split}_labels"] = np.arange(40) % 2
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
    np.savez(tmp_path / "old" / "own.npz", **splits)
    data = ["--dataset", "own", "--data-dir", str(tmp_path / "old"), "--batch-size", "20"]
    out = str(tmp_path / "run")
    train.main([*FLAGS, *data, "--method", "static", "--epochs", "1", "--out", out])
    accuracy = json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"]
    (tmp_path / "old" / "own.npz").rename(tmp_path / "new" / "own.npz")
    _, found = evaluated(out, "--data-dir", str(tmp_path / "new"))
    assert found["accuracy"] == accuracy
