"""Networks of a study are timed against the dense one, each point once."""

from dataclasses import replace

import pytest
from study_files import digits, row_of, study_file

import bench.report.records
import bench.study.times
from bench.study.__main__ import main
from bench.study.grid import read_study
from bench.study.machines import usual_machine
from bench.study.table import block
from bench.study.times import point_of, read_times, time_of


def test_the_times_are_of_every_point_and_its_whole_training(tmp_path):
    grids = {
        "blocks": {"settings": {"method": ["set", "static"], "block": "8x8"}, "seeds": 2},
        "dense": {"settings": {"method": "dense", "sparsity": 0}, "seeds": 1},
    }
    settings = {"model": "mlp", "epochs": 2, "dense_epochs": 1, "sparsity": 0.5}
    projection = {"dataset": "digits", "batch_size": 8, "models": {"mlp": "mlp"}}
    path = study_file(tmp_path, grids=grids, settings=settings, projection=projection)
    command = [str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out")]
    main([*command, "--time"])
    study, (rows,) = read_study(path), read_times(tmp_path / "tiny-times.csv").values()
    own = {point_of(run.settings) for run in study.runs()}
    assert set(rows) == own | {point_of(study.projection.of(r.settings)) for r in study.runs()}
    assert len(rows) == 6
    for row in rows.values():
        steps = float(row["training_ratio"]) / float(row["step_ratio"])
        assert row["update_ratio"] or steps == pytest.approx(2, rel=1e-3)


def test_runs_that_differ_in_rates_alone_share_a_time(tmp_path):
    point = {"method": "edst", "block": "8x8"}
    variants = {
        "as it is": point,
        "other rates": {**point, "drop": 0.1, "drop_schedule": "constant", "restart": 1.0},
        "fewer updates": {**point, "update_interval": 3},
    }
    settings = {"model": "mlp", "epochs": 40, "sparsity": 0.5}
    grids = {"rates": {"variants": variants, "seeds": 1, "against": "as it is"}}
    path = study_file(tmp_path, grids=grids, settings=settings)
    command = [str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out")]
    main([*command, "--time"])
    runs, (times,) = read_study(path).runs(), read_times(tmp_path / "tiny-times.csv").values()
    found = [time_of(times, run.settings) for run in runs]
    assert len(times) == 2
    assert found[0] is found[1] is not found[2] is not None
    assert time_of(times, {**runs[0].settings, "block": "4x4"}) is None
    own = {**found[0], "step_ratio": "7"}
    assert time_of({**times, point_of(runs[1].settings): own}, runs[1].settings) is own


def test_each_machine_times_all_points_itself(tmp_path, monkeypatch):
    grids = {"blocks": {"settings": {"method": "static", "block": ["8x8", "4x4"]}, "seeds": 1}}
    path = study_file(tmp_path, grids=grids)
    command = [str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out")]
    main([*command, "--time"])
    main([*command, "--time"])
    monkeypatch.setattr(bench.report.records, "device_name", lambda device: "CPU other")
    main([*command, "--time"])
    machines = read_times(tmp_path / "tiny-times.csv")
    assert [len(times) for times in machines.values()] == [2, 2]
    here, other = machines
    assert other == "CPU other, 1 thread"
    study = read_study(path)
    rows = {run.key: row_of(run, 0.5) for run in study.runs()}
    text = block(study, rows, machines, None)
    assert f"| blocks: 8x8 | {here} |" in text
    assert text.count("|  | CPU other, 1 thread | ") == 2
    assert usual_machine(machines) == here
    assert "CPU other" not in text.split("times by machine")[0]


def test_a_budget_of_time_is_settled_before_it_is_timed(tmp_path, monkeypatch):
    given = {"method": "static", "distribution": "timed", "time_budget": 0.5}
    settings = {"model": "mlp", "epochs": 2}
    path = study_file(tmp_path, grids={"timed": {"settings": given, "seeds": 1}}, settings=settings)
    seen = []

    def resolve_budget(config, info, device):
        seen.append(config.distribution)
        return replace(config, distribution="uniform", time_budget=None, sparsity=0.5)

    monkeypatch.setattr(bench.study.times, "resolve_budget", resolve_budget)
    main([str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out"), "--time"])
    assert seen == ["timed"]
