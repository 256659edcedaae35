"""The script that trains every method: it knows them all, and its table says how many seeds."""

import json

from bench.study import methods
from sparse_engine.methods.registry import METHODS


def test_every_method_is_trained():
    assert set(methods.METHODS) == set(METHODS)
    assert len(methods.METHODS) == len(METHODS)


def test_a_pupil_is_given_the_dense_run_of_its_seed(tmp_path):
    arguments = methods.command("kd-ticket", 2, tmp_path, ["--model", "mlp"])
    assert arguments[arguments.index("--teacher") + 1] == str(tmp_path / "dense-2")
    assert arguments[arguments.index("--seed") + 1] == "2"
    assert "--sparsity" not in methods.command("dense", 0, tmp_path, [])


def test_the_table_has_mean_and_range_over_finished_runs(tmp_path):
    for name, accuracy, flops in (
        ("dense-0", 0.6, 4.0),
        ("edst-0", 0.4, 1.0),
        ("edst-1", 0.5, 3.0),
    ):
        run = dict.fromkeys(methods.COLUMNS, 1.0)
        run |= {"accuracy": accuracy, "member_accuracy": [0.3, 0.4], "train_flops": flops}
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(run))
    (tmp_path / "edst-2").mkdir()  # not finished
    dense, edst = methods.table(methods.results(tmp_path)).splitlines()[2:]
    cells = [cell.strip() for cell in edst.strip("|").split("|")]
    assert cells[:5] == ["edst", "2", "2", "0.350", "0.450 (0.400-0.500)"]
    assert cells[7] == "0.500"  # of the dense run's FLOPs
    assert "(" not in dense


def test_finished_runs_stay_and_a_teacher_comes_first(tmp_path, monkeypatch):
    trained = []

    def train(self, flags, log):
        trained.append((flags[0], log.stem))
        return 0, "well"

    monkeypatch.setattr(methods.Trainings, "train", train)
    for name, file in (("set-0", "metrics.json"), ("rigl-0", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    methods.train(1, tmp_path, [], 1)
    assert len(trained) == len(METHODS) - 1
    assert ("--resume", "rigl-0") in trained
    assert trained[-1] == ("--method", "kd-ticket-0")
