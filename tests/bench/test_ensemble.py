"""The report on ensembles at tiny sizes: its rows, and its refusal of wrong results."""

import csv

import pytest

from bench import ensemble
from bench.speed import prediction


def rows_of(folder, *variants: str) -> list[dict[str, str]]:
    """Run the command at tiny size and return the rows of its CSV."""
    ensemble.main(["--tiny", "--rounds", "2", "--out", str(folder), "--variants", *variants])
    with (folder / "cpu-ensemble.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_ensembles(tmp_path):
    variants = ("native", "masked", "native grouped", "masked grouped", "masked vmapped")
    rows = rows_of(tmp_path, *variants)
    assert [row["contender"] for row in rows] == ["dense", *variants]
    for row in rows:
        assert row["label"] == ("sparse" if "native" in row["contender"] else "dense")
        assert row["phase"] == prediction.PHASE
        assert float(row["error"]) < 1e-3
        members = 1 if row["contender"] == "dense" else 3
        assert float(row["flops_ratio"]) == pytest.approx(members * float(row["density"]), abs=0.1)
        assert row["dense_ms"]


def test_a_wrong_ensemble_gives_no_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(prediction, "fold", lambda model, pairs: model.train())
    assert rows_of(tmp_path, "masked") == []
    assert "WrongResult: probabilities is off by" in capsys.readouterr().out
