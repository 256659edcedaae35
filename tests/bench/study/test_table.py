"""The tables of a study tell the truth."""

import pytest
from study_files import row_of, study_file

from bench.study.grid import read_study
from bench.study.table import block, dense_flops_of, places_of, points_of, table, write
from bench.study.times import point_of
from sparse_engine.errors import InputError


def lines_of(study, rows, times=None):
    """Return the lines of the first grid's table, without its head."""
    grid, projection = study.grids[0], study.projection
    points = points_of(grid, rows, times or {}, projection)
    return table(grid, points, dense_flops_of(rows), projection is not None).splitlines()[2:]


def test_differences_are_paired_by_seed(tmp_path):
    study = read_study(study_file(tmp_path))
    accuracies = {("8x8", 0): 0.5, ("8x8", 1): 0.8, ("16x16", 0): 0.6, ("16x16", 1): 0.7}
    rows = {
        run.key: row_of(run, accuracies[dict(run.point)["block"], run.seed]) for run in study.runs()
    }
    small, large = lines_of(study, rows)
    cells = [cell.strip() for cell in small.strip("|").split("|")]
    assert cells[:4] == ["8x8", "2", "65.00 ± 21.21", "+0.00 ± 10.00"]
    assert [cell.strip() for cell in large.strip("|").split("|")][3] == ""
    only = {key: row for key, row in rows.items() if row["accuracy"] != "0.7"}
    assert points_of(study.grids[0], only, {})[1].values("accuracy") == [0.6]
    assert "-10.00" in lines_of(study, only)[0]


def test_only_what_stands_between_the_marks_is_written(tmp_path):
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


def test_flops_are_of_a_dense_training_of_usual_length(tmp_path):
    variants = {name: {"method": "dense", "epochs": n} for name, n in (("usual", 4), ("long", 6))}
    grids = {"dense": {"variants": variants, "seeds": 1}}
    settings = {"model": "mlp", "dense_epochs": 4, "sparsity": 0}
    study = read_study(study_file(tmp_path, grids=grids, settings=settings))
    flops = ((4e9, 1.0), (6e9, 1.5))
    rows = {
        run.key: row_of(run, 0.5, method="dense", train_flops=own, train_flops_ratio=ratio)
        for run, (own, ratio) in zip(study.runs(), flops)
    }
    lines = lines_of(study, rows)
    assert [line.split("|")[8].strip() for line in lines] == ["1.00", "1.50"]


def test_tickets_that_were_evaluated_have_a_second_table(tmp_path):
    study = read_study(study_file(tmp_path, evaluation={"severities": "3", "foreign": "digits"}))
    rows = {r.key: row_of(r, 0.5, members=3, cpu_seconds=60 * (1 + r.seed)) for r in study.runs()}
    text = block(study, rows, {}, None)
    assert "| 8x8 | 3 |  |  |  |  |  | 1.5 |  |" in text
    assert "| 8x8 | 2 | 50.00 ± 0.00 |" in text


def test_a_grid_without_rows_has_no_table(tmp_path):
    """Or with rows of that alone which others are compared with."""
    study = read_study(study_file(tmp_path))
    against = {run.key: row_of(run, 0.5) for run in study.runs() if "16x16" in str(run.point)}
    for rows in ({}, against):
        text = block(study, rows, {}, None)
        assert text.endswith("differences to block 16x16\n\nnothing to compare yet")


def test_a_larger_network_has_the_last_column(tmp_path):
    projection = {"dataset": "digits", "batch_size": 8, "models": {"mlp": "wrn10-1"}}
    study = read_study(study_file(tmp_path, projection=projection))
    rows = {run.key: row_of(run, 0.5) for run in study.runs()}
    time = {"training_ratio": "0.9", "step_ratio": "0.3", "ratio_p20": "0.2", "ratio_p80": "0.4"}
    times = {point_of(study.projection.of(study.runs()[0].settings)): time}
    first, second = lines_of(study, rows, times)
    assert first.endswith("|  | 0.90 (0.60-1.20) |")
    assert second.endswith("|  |  |")
    wrong = {"batch_size": [8]}, {"models": {"wrn10-1": "mlp"}}, {"dataset": None}
    for change, message in zip(wrong, ("should be a int", "no larger model of 'mlp'", "a str")):
        with pytest.raises(InputError, match=message):
            read_study(study_file(tmp_path, projection=projection | change))


def test_a_point_without_a_time_has_no_place(tmp_path):
    study = read_study(study_file(tmp_path))
    rows = {run.key: row_of(run, 0.5) for run in study.runs()}
    point = points_of(study.grids[0], rows, {})[0]
    key = point_of(next(run.settings for run in study.runs() if run.key == point.rows[0]["key"]))
    times = {key: {"training_ratio": "0.4"}}
    assert places_of(study, rows, times) == {"blocks": [(point.name, (0.4, 50.0))]}
