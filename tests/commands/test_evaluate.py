"""Any set of runs as one ensemble."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_engine import evaluate, train
from sparse_engine.config.config import Config
from sparse_engine.config.values import read_config_file
from sparse_engine.data.load import load_dataset
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.evaluation.metrics import (
    classification_metrics,
    disagreement,
    kl_divergence,
)
from sparse_engine.runs.files import load_file
from sparse_engine.training.network import build_network

FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
SCORES = ("accuracy", "nll", "ece", "brier")
GOOD = ["--batch-size", "32", "--epochs", "8", "--topology", "static"]
RUNS = {
    "edst": ["--method", "edst", "--epochs", "9", "--sparsity", "0.5"],
    "rigl": ["--method", "rigl", "--epochs", "4", "--block", "1x1", "--seed", "1"],
    "good": [*("--method", "dst-ensemble", "--members", "2", "--sparsity", "0.3"), *GOOD],
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


def tables_of(lines):
    """Return the Markdown tables among lines: cells by row name, by name of the first column."""
    tables, rows = {}, None
    for line in lines:
        if not line.startswith("|"):
            rows = None
            continue
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if rows is None:
            rows = tables[name] = {"": cells}
        elif set(name) != {"-"}:
            rows[name] = cells
    return tables


def test_the_table_sets_members_beside_their_ensemble(evaluated):
    lines, found = evaluated("edst", "rigl")
    table = tables_of(lines)[""]
    names = [*(f"member {number}" for number in range(1, 5)), "mean of members", "ensemble"]
    assert list(table) == ["", *names]
    assert table[""] == ["accuracy", "NLL", "ECE", "Brier"]
    assert table["ensemble"] == [f"{found[name]:.4f}" for name in SCORES]
    assert table["mean of members"][0] == f"{sum(found['member_accuracy']) / 4:.4f}"
    assert list(tables_of(evaluated("rigl")[0])[""]) == ["", "member 1"]


def test_costs_of_several_runs_add_up_and_memory_is_the_highest(evaluated):
    lines, found = evaluated("edst", "rigl")
    one, two = (json.loads(Path(name, "metrics.json").read_text()) for name in ("edst", "rigl"))
    for name in ("train_flops", "train_flops_ratio", "test_flops_ratio", "train_seconds"):
        assert found["costs"][name] == one[name] + two[name]
    peaks = [run["peak_memory_bytes"] for run in (one, two)]
    assert found["costs"]["peak_memory_bytes"] == max(peaks)
    ratio = tables_of(lines)["cost of all runs"]["training FLOPs"][1]
    assert ratio == f"{found['costs']['train_flops_ratio']:.2f}"


def test_costs_of_an_unfinished_run_are_unknown(evaluated):
    Path("rigl/metrics.json").rename("rigl/kept")
    lines, found = evaluated("edst", "rigl")
    Path("rigl/kept").rename("rigl/metrics.json")
    assert set(found["costs"].values()) == {None}
    assert tables_of(lines)["cost of all runs"]["test FLOPs"] == ["", "unknown"]


def test_diversity_is_a_matrix_and_its_mean(evaluated):
    lines, found = evaluated("edst", "rigl")
    members = [*predict_by_hand("edst")[0], *predict_by_hand("rigl")[0]]
    for i, p in enumerate(members):
        for j, q in enumerate(members):
            assert found["disagreement_matrix"][i][j] == disagreement(p, q)
            assert found["kl_matrix"][i][j] == pytest.approx(kl_divergence(p, q), abs=1e-5)
    cell = tables_of(lines)["disagreement / KL"]["member 2"][3]
    assert cell == f"{found['disagreement_matrix'][1][3]:.4f} / {found['kl_matrix'][1][3]:.4f}"
    mean = f"mean over pairs: {found['disagreement']:.4f} / {found['kl']:.4f}"
    assert mean in lines


def test_the_ensemble_as_it_grows_and_its_calibration(evaluated):
    _, found = evaluated("edst", "rigl")
    assert found["growing"][0] == found["members"][0]
    assert found["growing"][3] == {name: found[name] for name in SCORES}
    assert len(found["growing"]) == 4
    bins = found["calibration"]
    gaps = zip(bins["counts"], bins["accuracy"], bins["confidence"], strict=True)
    error = sum(n * abs(a - c) for n, a, c in gaps) / sum(bins["counts"])
    assert error == pytest.approx(found["ece"])
    assert "growing" not in evaluated("rigl")[1]


def test_corrupted_images(evaluated):
    lines, found = evaluated("good", "--corruptions", "--severities", "1,5")
    corrupted = found["corruptions"]
    assert (corrupted["severities"], len(corrupted["families"])) == ([1, 5], 15)
    cells = [s for by_severity in corrupted["families"].values() for s in by_severity.values()]
    assert len(cells) == 30
    for name in SCORES:
        assert corrupted[name] == pytest.approx(sum(cell[name] for cell in cells) / 30)
    assert corrupted["accuracy"] < found["accuracy"] - 0.05
    assert corrupted["nll"] > found["nll"]
    assert len(corrupted["members"]) == 2
    tables = tables_of(lines)
    assert tables[""]["ensemble"][4] == f"{corrupted['accuracy']:.4f}"
    fog = [corrupted["families"]["fog"][s]["accuracy"] for s in ("1", "5")]
    assert tables["accuracy, corrupted"]["fog"] == [f"{v:.4f}" for v in (*fog, sum(fog) / 2)]
    assert evaluated("good", "--corruptions", "--severities", "5")[1]["corruptions"]["families"][
        "snow"
    ] == {"5": corrupted["families"]["snow"]["5"]}


def test_foreign_images_are_told_from_digits(evaluated, tmp_path):
    splits = {f"{split}_images": np.zeros((30, 16, 16, 3), np.uint8) for split in ("train", "test")}
    labels = {f"{split}_labels": np.arange(30) % 2 for split in ("train", "test")}
    np.savez(tmp_path / "black.npz", **splits, **labels)
    flags = ["--data-dir", str(tmp_path), "--ood", "black", "--ood", "noise"]
    lines, found = evaluated("good", *flags)
    assert list(found["ood"]) == ["black", "noise"]
    black = found["ood"]["black"]
    assert (black["images"], found["ood"]["noise"]["images"]) == (30, 360)
    assert black["entropy"]["auroc"] > 0.9
    assert len(black["members"]) == 2
    assert "black: 30 images, 16x16 resized to 8x8, 3 channels made 1" in lines
    assert found["accuracy"] == evaluated("good")[1]["accuracy"]


def test_attacked_images(evaluated):
    flags = ["--attack", "fgsm,pgd", "--epsilon", "0.3", "--attack-images", "100"]
    lines, found = evaluated("good", *flags, "--attack-steps", "4")
    assert list(found["attacks"]) == ["fgsm", "pgd"]
    assert found["attacks"]["pgd"]["steps"] == 4
    for result in found["attacks"].values():
        assert (result["epsilon"], result["images"]) == (0.3, 100)
        assert [len(row) for row in result["matrix"]] == [3] * 3
        assert result["targets"][-1]["max"] < found["accuracy"] - 0.1
    row = next(line for line in lines if line.startswith("| pgd") and "ensemble" in line)
    smallest = found["attacks"]["pgd"]["targets"][-1]["min"]
    assert row.split("|")[3].strip() == f"{smallest:.4f}"


def test_out_is_the_json_object(evaluated, tmp_path):
    path = tmp_path / "found.json"
    _, found = evaluated("rigl", "--out", str(path))
    assert json.loads(path.read_text()) == found
    assert [p.name for p in tmp_path.iterdir()] == ["found.json"]


def test_a_file_that_cannot_be_written_loses_nothing(evaluated, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(RunFailure, match=r"disk full; .*; the JSON line holds everything"):
        evaluated("rigl", "--out", str(tmp_path / "found.json"))
    assert "accuracy" in json.loads(capsys.readouterr().out.splitlines()[-1])


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


def write_own_data(folder, classes=2, brightness=1, size=8):
    """Write the data set `own`, of 40 images a split, into a new folder."""
    folder.mkdir()
    pixels = np.arange(40 * size * size) % 200 // (1 if brightness == 1 else 2)
    splits = {}
    for split in ("train", "test"):
        splits[f"{split}_images"] = pixels.astype(np.uint8).reshape(40, size, size)
        splits[f"{split}_labels"] = np.arange(40) % classes
    np.savez(folder / "own.npz", **splits)


def train_on_own_data(folder, out):
    data = ["--dataset", "own", "--data-dir", str(folder), "--batch-size", "20"]
    train.main([*FLAGS, *data, "--method", "static", "--epochs", "1", "--out", str(out)])


def test_data_dir_says_where_the_data_has_moved(evaluated, tmp_path, capsys):
    write_own_data(tmp_path / "old")
    (tmp_path / "new").mkdir()
    out = str(tmp_path / "run")
    train_on_own_data(tmp_path / "old", out)
    accuracy = json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"]
    (tmp_path / "old" / "own.npz").rename(tmp_path / "new" / "own.npz")
    _, found = evaluated(out, "--data-dir", str(tmp_path / "new"))
    assert found["accuracy"] == accuracy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 3}, "whose number of classes is 3, and the data here has 2: evaluate it"),
        ({"brightness": 2}, r"whose normalisation \(mean\) is \(0.1\d+,\), and the data here"),
        ({"size": 10}, "whose image height is 10, and the data here has 8"),
    ],
)
def test_runs_on_other_arrays_of_the_same_name_are_refused(changes, message, evaluated, tmp_path):
    write_own_data(tmp_path / "one")
    write_own_data(tmp_path / "two", **changes)
    for name in ("one", "two"):
        train_on_own_data(tmp_path / name, tmp_path / f"run-{name}")
    runs = [str(tmp_path / "run-one"), str(tmp_path / "run-two")]
    with pytest.raises(InputError, match=message):
        evaluated(*runs)
    with pytest.raises(InputError, match="run-one' was trained on"):
        evaluated(*runs[:1], "--data-dir", str(tmp_path / "two"))
    assert len(evaluated(runs[1])[1]["members"]) == 1
