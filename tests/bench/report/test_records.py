"""The CSV of the reports: appended, one heading, never mixed with other columns."""

import pytest

from bench.report import records
from bench.report.records import COLUMNS, Records, best_dense, file_name, read, read_all
from sparse_engine.errors import InputError
from sparse_kernels import measurements


def test_rows_are_appended_under_one_heading(tmp_path):
    path = tmp_path / "new" / "cpu-training.csv"
    for run, time in (("first", 1.23456789), ("second", 2.0)):
        Records(path, {"run": run, "device": "CPU"}).add(p50_ms=time, n=3, peak_mb=None)
    assert path.read_text().splitlines()[0].split(",") == list(COLUMNS)
    rows = read_all(tmp_path / "new")
    assert [row["run"] for row in rows] == ["first", "second"]
    assert [row["p50_ms"] for row in rows] == ["1.2346", "2"]
    assert rows[0]["peak_mb"] == rows[0]["error"] == ""


def test_a_run_that_goes_on_sees_its_own_rows(tmp_path):
    path = tmp_path / "a.csv"
    Records(path, {"run": "first"}).add(subject="x")
    Records(path, {"run": "other"}).add(subject="y")
    assert [row["subject"] for row in Records(path, {"run": "first"}).rows] == ["x"]


def test_a_file_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("a,b\n1,2\n")
    for use in (lambda: Records(path, {"run": "now"}), lambda: read(path)):
        with pytest.raises(InputError, match=r"other columns"):
            use()
    assert path.read_text() == "a,b\n1,2\n"


def test_a_column_that_is_none_is_refused(tmp_path):
    with pytest.raises(KeyError, match="speed"):
        Records(tmp_path / "a.csv", {"run": "now"}).add(speed=1.0)


def test_the_best_dense_row_of_a_subject_and_phase(tmp_path):
    records = Records(tmp_path / "a.csv", {"run": "now"})
    for subject, variant, phase, time in (
        ("net", "dense", "step", 4.0),
        ("net", "dense captured", "step", 3.0),
        ("net", "auto rows", "step", 1.0),
        ("net", "dense", "forward", 2.0),
        ("other", "dense", "step", 0.5),
    ):
        records.add(subject=subject, contender=variant, phase=phase, p50_ms=time)
    best = best_dense(records.rows, subject="net", phase="step")
    assert (best["p50_ms"], best["contender"]) == ("3", "dense captured")
    assert best_dense(records.rows, subject="net", phase="backward") is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("flags\t\t: fma avx512f avx512_bf16 amx_bf16", "EPYC with AVX512-BF16 and AMX"),
        ("Features\t: fp asimd bf16", "EPYC with Arm's BF16"),
        ("flags\t\t: fma avx512f", "EPYC without bf16 products"),
        ("", "EPYC"),
    ],
)
def test_a_processor_is_named_with_how_it_multiplies_bf16(line, words, monkeypatch):
    monkeypatch.setattr(measurements, "cpuinfo", lambda: f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(measurements, "processor", lambda: "EPYC")
    assert records.device_name("cpu") == f"CPU {words}"


def test_files_are_named_after_the_device():
    assert file_name("CPU of some make", "kernels") == "cpu-kernels.csv"
    assert file_name("NVIDIA H200", "all") == "nvidia-h200-all.csv"


def test_facts_are_those_a_figure_is_quoted_with():
    facts = records.environment("cpu")
    assert facts["device"].startswith("CPU")
    assert all(facts[name] for name in ("threads", "torch", "triton", "commit", "driver"))
    assert set(facts) <= set(COLUMNS)
