"""Taps and strips of a study are ordered by the time that is predicted for them."""

from argparse import Namespace

from bench.dev.equal_time import predicted, rows
from bench.report.records import append_row
from bench.study.runs import COLUMNS


def test_sparser_and_strips_are_predicted_to_be_faster():
    taps, strips, sparser = (
        predicted((32, 32), *which) for which in (("each", 0.8), ("row", 0.8), ("each", 0.9))
    )
    assert strips < sparser < taps
    assert predicted((32, 32), "all", 0.8) == strips


def test_rows_are_means_over_seeds_by_time(tmp_path):
    points = [("0.8", "32x32", "row", 0.5), ("0.8", "32x32", "row", 0.7)]
    points += [("0.9", "32x32", "row", 0.5), ("0.8", "32x32", "each", 0.55)]
    for sparsity, block, taps, accuracy in points:
        values = {"sparsity": sparsity, "block": block, "taps": taps, "accuracy": accuracy}
        append_row(tmp_path / "study.csv", COLUMNS, values)
    found = [*rows(Namespace(table=str(tmp_path / "study.csv")))]
    assert [row[1:] for row in found] == [
        ("50.00", "1", "0.9", "32x32", "row", "yes"),
        ("60.00", "2", "0.8", "32x32", "row", "yes"),
        ("55.00", "1", "0.8", "32x32", "each", ""),
    ]
