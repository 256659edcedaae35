"""What sparse-engine plan goes by is what the study's CSV says."""

import csv
import json
from pathlib import Path

import pytest
from study_files import row_of, study_file

import bench.study
from bench.study.__main__ import main
from bench.study.grid import read_study
from bench.study.plan_rows import plan_rows
from bench.study.runs import COLUMNS, Table
from sparse_engine.errors import InputError
from sparse_engine.planning.rows import PACKAGED, read_rows, write_rows

STUDIES = Path(bench.study.__file__).parents[1] / "studies"
# The study that the package's rows are of.
OWN = STUDIES / "wrn10-2-cifar10-16px-full.json"
STUDY = {
    "data": {"dataset": "cifar10", "pixels": 16, "train": 5000, "test": 1000},
    "settings": {"model": "wrn10-2", "epochs": 50, "dense_epochs": 50, "lr": 0.05, "taps": "row"},
    "grids": {
        "one": {
            "variants": {
                "dense": {"method": "dense"},
                "half": {"method": "dense", "epochs": 25},
                "narrow": {"method": "dense", "model": "wrn10-1"},
                "edst": {"method": "edst", "epochs": 90, "block": "16x16"},
                "timed": {"method": "rigl", "distribution": "timed", "time_budget": 0.5},
                "faster": {"method": "rigl", "sparsity": 0.9, "lr": 0.1},
            },
            "seeds": 3,
        },
        "two": {"settings": {"method": "dense"}, "variants": {"again": {}}, "seeds": 2},
    },
}
# Dense, and what the others are better by, seed by seed.
DENSE = (0.60, 0.61, 0.62)
BETTER = {"half": (-0.02, -0.01, 0.0), "narrow": (-0.1,) * 3, "edst": (0.01, 0.02, 0.03)}


def made(study, left_out=()):
    """Return rows of the runs of a study; of "timed" one seed alone."""
    rows = {}
    for run in study.runs():
        name, method = dict(run.point)["variant"], run.settings["method"]
        better = BETTER.get(name, (0.0,) * 3)[run.seed]
        timed = name == "timed"
        if (name, run.seed) in left_out or (timed and run.seed):
            continue
        known = {
            **{"method": method, "model": run.settings["model"], "device": "CPU", "dtype": "fp32"},
            **{"epochs": run.settings["epochs"], "block": "32x32", "taps": "row"},
            **{"distribution": "timed" if timed else "erk", "sparsity": 0.77, "members": 3},
            **{"nll": 1 + run.seed, "settings": json.dumps(run.settings)},
        }
        rows[run.key] = row_of(run, DENSE[run.seed] + better, **known)
    return rows


@pytest.fixture
def study(tmp_path):
    return read_study(study_file(tmp_path, **STUDY))


def test_seeds_are_put_together_and_paired(study):
    found = plan_rows(study, made(study))
    dense, half, narrow, edst, faster = found
    assert (dense.difference, dense.error, dense.n, dense.nll) == (0.0, 0.0, 3, 2.0)
    assert dense.accuracy == pytest.approx(0.61)
    assert dense.deviation == pytest.approx(0.01)
    assert half.difference == pytest.approx(-0.01)
    assert half.error == pytest.approx(0.01 / 3**0.5)
    assert (half.epochs, half.dense_epochs, half.is_dense, half.length) == (25, 50, True, 0.5)
    assert (narrow.network, narrow.model, narrow.is_dense) == ("wrn10-1", "wrn10-2", False)
    assert edst.difference == pytest.approx(0.02)
    assert (edst.dataset, edst.pixels, edst.images) == ("cifar10-16px-5000-1000", 16, 5000)
    assert (edst.batch_size, edst.device, edst.study) == (128, "CPU", "tiny")
    assert faster.n == 3


def test_settings_are_what_tells_a_training_and_what_a_recipe_decided(study):
    settings = [row.settings for row in plan_rows(study, made(study))]
    sparse = {"block": "32x32", "distribution": "erk", "taps": "row"}
    edst = {"method": "edst", "members": 3, "sparsity": 0.77, **sparse, "block": "16x16"}
    assert settings[0] == settings[1] == settings[2]
    assert settings[0] == {"method": "dense"}
    assert settings[3] == edst
    # What all runs share is the study's; what one of them has of its own is that run's.
    assert settings[4] == {"method": "rigl", **sparse, "sparsity": 0.9, "lr": 0.1}


def test_seeds_without_a_dense_run_and_single_seeds_do_not_count(study):
    without = made(study, {("dense", 0), ("again", 0)})
    assert {row.n for row in plan_rows(study, without)} == {2}
    fewer = made(study, {("edst", 1), ("edst", 2)})
    assert "edst" not in [row.settings["method"] for row in plan_rows(study, fewer)]
    assert plan_rows(study, {}) == []


def test_a_study_without_a_dense_run_to_compare_with(tmp_path):
    settings = {"model": "mlp", "epochs": 2}
    study = read_study(study_file(tmp_path, settings=settings))
    with pytest.raises(InputError, match="settings should say model and dense_epochs"):
        plan_rows(study, {})


def test_the_command_writes_them(tmp_path, capsys):
    path = study_file(tmp_path, **STUDY)
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(made(read_study(path)).values())
    main([str(path), "--write-plan", str(tmp_path / "rows.csv")])
    assert "5 trainings of study tiny" in capsys.readouterr().out
    assert [row.epochs for row in read_rows(tmp_path / "rows.csv")] == [50, 25, 50, 90, 50]


def test_the_packages_rows_are_the_studys(tmp_path):
    study = read_study(OWN)
    write_rows(tmp_path / "rows.csv", plan_rows(study, Table(OWN.with_suffix(".csv")).rows))
    wanted = (tmp_path / "rows.csv").read_text()
    assert PACKAGED.read_text() == wanted, "python -m bench.study FILE --write-plan"
