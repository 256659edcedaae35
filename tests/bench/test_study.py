"""A study: its file is checked before a run, runs are made once, its tables tell the truth."""

import csv
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import bench.study
from bench.small_data import averaged, cut
from bench.study import main
from bench.study_grid import Data, read_study
from bench.study_runs import COLUMNS, Runner, Table
from bench.study_table import pareto, points_of, table, write
from bench.study_times import point_of, read_times
from sparse_engine.errors import InputError, RunFailure

STUDIES = Path(bench.study.__file__).parent / "studies"
DIGITS = {
    "title": "tiny",
    "data": {"dataset": "digits", "train": 128, "test": 50},
    "settings": {"model": "mlp", "epochs": 2, "batch_size": 32, "sparsity": 0.5},
    "grids": {
        "blocks": {
            "settings": {"method": "set", "block": ["8x8", "16x16"]},
            "seeds": 2,
            "against": {"block": "16x16"},
        }
    },
}


def study_file(folder, **changes):
    path = folder / "tiny.json"
    path.write_text(json.dumps({**DIGITS, **changes}))
    return path


def digits(folder):
    """Write digits.npz: random images, as a study cuts parts from files alone."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 200), ("test", 60)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(folder / "digits.npz", **arrays)
    return folder


def row_of(run, accuracy, **more):
    values = {"nll": 1.0, "ece": 0.1, "parameters": 1e6, "train_flops": 1e9, **more}
    return dict.fromkeys(COLUMNS, "") | {
        "key": run.key, "accuracy": str(accuracy), **{k: str(v) for k, v in values.items()}
    }  # fmt: skip


def test_axes_are_crossed_with_each_other_and_with_variants(tmp_path):
    grid = {
        "settings": {"method": "rigl", "sparsity": [0.8, 0.9]},
        "variants": {"plain": {}, "fast": {"lr": 0.2}},
        "seeds": [3, 5],
        "against": "plain",
    }
    study = read_study(
        study_file(tmp_path, settings={"model": "mlp", "epochs": 2}, grids={"g": grid})
    )
    runs = study.runs()
    assert [(r.seed, *(v for _, v in r.point)) for r in runs[:4]] == [
        (3, 0.8, "plain"), (3, 0.8, "fast"), (3, 0.9, "plain"), (3, 0.9, "fast"),
    ]  # fmt: skip
    assert len({run.key for run in runs}) == 8
    assert [run.settings.get("lr") for run in runs[:2]] == [None, 0.2]


def test_a_run_of_two_grids_is_made_once(tmp_path):
    grids = {
        **DIGITS["grids"],
        "again": {"settings": {"method": "set", "block": "8x8"}, "seeds": 1},
    }
    study = read_study(study_file(tmp_path, grids=grids))
    assert len(study.runs()) == 4
    assert study.grids[1].runs[0].key == study.grids[0].runs[0].key


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {}}, "unknown name 'grid'; did you mean 'grids'"),
        ({"data": {"dataset": "digits", "pixels": 0}}, "pixels should be a int, found 0"),
        ({"settings": {"model": "mlp"}}, "say model and epochs"),
        ({"settings": {"model": "mlp", "epochs": 1, "seed": 1}}, "'seed' is set by the study"),
        ({"settings": {"model": "mlp", "epochs": 1, "blocks": "8x8"}}, "unknown setting 'blocks'"),
        ({"grids": {"g": {"settings": {"method": "sett"}, "seeds": 1}}}, "unknown method 'sett'"),
        ({"grids": {"g": {"settings": {"method": "set"}}}}, "'seeds' is missing"),
        ({"grids": {"g": {"settings": {"method": "set"}, "seeds": []}}}, "seeds should be"),
        (
            {"grids": {"g": {"settings": {"method": "set"}, "seeds": 1, "against": {"lr": 1}}}},
            "'lr', which is no axis",
        ),
        (
            {"grids": {"g": {"settings": {"method": "dense", "sparsity": [0.5]}, "seeds": 1}}},
            "grid 'g', sparsity 0.5: method 'dense' has no sparsity",
        ),
    ],
)  # fmt: skip
def test_what_a_file_says_wrong_is_told_before_any_run(tmp_path, changes, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        read_study(study_file(tmp_path, **changes))


def test_files_that_are_none_are_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_study(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_study(tmp_path / "bad.json")
    (tmp_path / "tiny.csv").write_text("a,b\n")
    with pytest.raises(InputError, match="has other columns"):
        Table(tmp_path / "tiny.csv")
    with pytest.raises(InputError, match="--data-dir is missing"):
        main(
            [
                str(study_file(tmp_path)),
                "--out",
                str(tmp_path / "out"),
                "--table",
                str(tmp_path / "t.csv"),
            ]
        )


def test_runs_are_made_once_and_failed_ones_again(tmp_path, capsys):
    grid = {**DIGITS["grids"]["blocks"], "seeds": 1}
    path = study_file(tmp_path, grids={"blocks": grid})
    command = [str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out")]
    command += ["--device", "cpu", "--processes", "2"]
    victim = read_study(path).runs()[0].key
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{victim}.json").mkdir()  # its settings cannot be written
    with pytest.raises(IsADirectoryError):
        main(command)
    (tmp_path / "out" / f"{victim}.json").rmdir()
    main(command)
    with (tmp_path / "tiny.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["key"] for row in rows) == sorted(r.key for r in read_study(path).runs())
    assert {row["block"] for row in rows} == {"8x8", "16x16"}
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 1
        assert float(row["seconds_per_epoch"]) > 0
        assert row["dataset"] == "digits-128-50"
    assert not list((tmp_path / "out").glob("*/last.pt"))
    capsys.readouterr()
    main(command)
    assert "0 of 2 runs to make" in capsys.readouterr().out


def test_a_run_that_fails_is_named_and_leaves_no_row(tmp_path):
    diverging = {"model": "mlp", "epochs": 2, "sparsity": 0.5, "lr": 1e30}
    grids = {"g": {"settings": {"method": "static", "block": "8x8"}, "seeds": 1}}
    path = study_file(tmp_path, settings=diverging, grids=grids)
    command = [str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out")]
    with pytest.raises(RunFailure, match=r"1 runs failed, see .*\.log"):
        main([*command, "--device", "cpu"])
    assert not (tmp_path / "tiny.csv").exists()


def test_a_run_that_is_stopped_is_resumed(tmp_path, monkeypatch):
    grids = {"g": {"settings": {"method": "static", "block": "8x8", "epochs": 4000}, "seeds": 1}}
    study = read_study(study_file(tmp_path, grids=grids))
    cut(digits(tmp_path) / "digits.npz", tmp_path / f"{study.data.name}.npz", (128, 50), None)
    runner = Runner(study, Table(tmp_path / "t.csv"), tmp_path / "out", str(tmp_path), "cpu")
    folder = tmp_path / "out" / study.runs()[0].key

    def stop_after_a_checkpoint():
        while not (folder / "last.pt").exists():
            time.sleep(0.05)
        runner.stop()

    watcher = threading.Thread(target=stop_after_a_checkpoint)
    watcher.start()
    runner.run(1)
    watcher.join()
    assert runner.failed == []
    assert runner.table.rows == {}
    given = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: given.append(command) or Ended())
    Runner(study, runner.table, runner.out, runner.data_dir, "cpu").run(1)
    assert given[0][-2:] == ["--resume", str(folder)]


class Ended:
    """A process that ended with an error at once."""

    def wait(self):
        return 1


def test_the_times_are_of_every_point_and_its_whole_training(tmp_path):
    grids = {
        "blocks": {"settings": {"method": ["set", "static"], "block": "8x8"}, "seeds": 2},
        "dense": {"settings": {"method": "dense", "sparsity": 0}, "seeds": 1},
        "fine": {"settings": {"method": "static", "start_block": "1x1"}, "seeds": 1},
    }
    settings = {**DIGITS["settings"], "dense_epochs": 1}
    path = study_file(tmp_path, grids=grids, settings=settings)
    command = [str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out")]
    main([*command, "--time"])
    study, rows = read_study(path), read_times(tmp_path / "tiny-times.csv")
    assert set(rows) == {point_of(run) for run in study.runs()}
    assert len(rows) == 4
    for row in rows.values():
        steps = float(row["training_ratio"]) / float(row["step_ratio"])
        changes = row["update_ratio"] or "start_block" in row["point"]
        assert changes or steps == pytest.approx(2, rel=1e-3)


def test_differences_are_paired_by_seed(tmp_path):
    study = read_study(study_file(tmp_path))
    accuracies = {("8x8", 0): 0.5, ("8x8", 1): 0.8, ("16x16", 0): 0.6, ("16x16", 1): 0.7}
    rows = {
        run.key: row_of(run, accuracies[dict(run.point)["block"], run.seed]) for run in study.runs()
    }
    small, large = table(study.grids[0], rows, {}).splitlines()[2:]
    cells = [cell.strip() for cell in small.strip("|").split("|")]
    assert cells[:4] == ["8x8", "2", "65.00 ± 21.21", "+0.00 ± 10.00"]
    assert [cell.strip() for cell in large.strip("|").split("|")][3] == ""
    only = {key: row for key, row in rows.items() if row["accuracy"] != "0.7"}
    assert points_of(study.grids[0], only, {})[1].values("accuracy") == [0.6]
    assert "-10.00" in table(study.grids[0], only, {})


def test_the_front_keeps_what_nothing_beats():
    places = [(1.0, 90.0), (0.5, 85.0), (0.5, 80.0), (0.7, 84.0), (0.2, 60.0), (1.2, 90.0)]
    assert pareto(places) == [(0.2, 60.0), (0.5, 85.0), (1.0, 90.0)]


def test_only_what_stands_between_the_marks_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    study = read_study(study_file(tmp_path))
    rows = {run.key: row_of(run, 0.5) for run in study.runs()}
    document = tmp_path / "blocks.md"
    with pytest.raises(InputError, match="needs the marks <!-- study tiny -->"):
        write(study, rows, tmp_path / "none.csv", document)
    document.write_text("a\n<!-- study tiny -->\nold\n<!-- end of study tiny -->\nb\n")
    write(study, rows, tmp_path / "none.csv", document)
    text = document.read_text()
    assert text.split("<!--")[0] == "a\n"
    assert text.split("-->")[-1] == "\nb\n"
    assert "old" not in text
    assert "| 8x8 | 2 | 50.00 ± 0.00 |" in text


def test_a_small_set_is_averaged_and_whole_or_not_there(tmp_path):
    images = np.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8).astype(np.uint8)
    assert averaged(images, 4)[1, 2, 0, 3] == images[1, 2, 0:2, 6:8].astype(float).mean().round()
    with pytest.raises(InputError, match="cannot be averaged to 3"):
        averaged(images, 3)
    digits(tmp_path)
    with pytest.raises(InputError, match="has 60 test images, not 100"):
        cut(tmp_path / "digits.npz", tmp_path / "x" / "small.npz", (10, 100), None)
    assert not (tmp_path / "x").exists()
    assert Data("cifar10", 16, 100).name == "cifar10-16px-100"
    assert Data("cifar10").name == "cifar10"


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    command = [sys.executable, "-m", "bench.study", str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: study '")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.json")), ids=lambda path: path.stem)
def test_the_studies_here_can_be_read(path):
    assert read_study(path).runs()
    Table(path.with_suffix(".csv"))
