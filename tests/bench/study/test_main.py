"""The study's command: what is wrong in one line, and a training a row."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from study_files import digits, study_file

import bench.study
from bench.study.__main__ import main
from bench.study.grid import read_study
from bench.study.runs import Table
from sparse_engine.errors import InputError

STUDIES = Path(bench.study.__file__).parents[1] / "studies"


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


def test_a_run_is_a_training_and_a_row(tmp_path, capsys):
    grids = {"g": {"settings": {"method": "set", "block": "8x8"}, "seeds": [3]}}
    path = study_file(tmp_path, grids=grids)
    command = [str(path), "--data-dir", str(digits(tmp_path)), "--out", str(tmp_path / "out")]
    main([*command, "--device", "cpu"])
    with (tmp_path / "tiny.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["key"] == read_study(path).runs()[0].key
    known = {"block": "8x8", "seed": "3", "method": "set", "dataset": "digits-128-50"}
    assert {name: row[name] for name in known} == known
    assert 0 <= float(row["accuracy"]) <= 1
    assert float(row["seconds_per_epoch"]) > 0
    assert json.loads(row["settings"])["sparsity"] == 0.5
    assert not list((tmp_path / "out").glob("*/last.pt"))


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
