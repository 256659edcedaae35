"""The script that trains every method: it knows them all, and its table says how many seeds."""

import json

import pytest

from bench.study import methods
from sparse_engine.config.config import Config
from sparse_engine.config.values import check_values
from sparse_engine.methods.registry import METHODS
from sparse_engine.methods.resolve import resolve


def test_every_method_is_trained():
    assert set(methods.METHODS) == set(METHODS)
    assert len(methods.METHODS) == len(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_run_has_settings_that_agree(method, tmp_path):
    (run,) = methods.study([method], 1, tmp_path, {"model": "mlp", "scale": 0.4}).runs()
    assert run.key == f"{method}-0"
    checked = check_values(run.settings, "flags")
    resolve(Config(**{**checked, "dataset": "cifar10"}))


def test_a_pupil_is_given_the_dense_run_of_its_seed(tmp_path):
    dense, pupil = methods.study(["dense", "kd-ticket"], 3, tmp_path, {}).runs()[-2:]
    assert pupil.settings["teacher"] == str(tmp_path / "dense-2")
    assert pupil.settings["seed"] == dense.seed == 2
    assert "sparsity" not in dense.settings


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
    dense, edst = methods.markdown_table(methods.results(tmp_path)).splitlines()[2:]
    cells = [cell.strip() for cell in edst.strip("|").split("|")]
    assert cells[:5] == ["edst", "2", "2", "0.350", "0.450 (0.400-0.500)"]
    assert cells[7] == "0.500"  # of the dense run's FLOPs
    assert "(" not in dense
