"""The report of a folder of CSVs: a chapter for each device, and the README's first table."""

import pytest
from report_rows import DENSE, SPARSE

from bench.report import __main__ as report
from bench.report.records import REPORTS, Records, read_all
from bench.report.tables import speed_table, with_block
from sparse_engine.errors import InputError


def test_the_readme_has_the_table_of_the_committed_rows():
    text = report.README.read_text(encoding="utf-8")
    assert with_block(text, "speed table", speed_table(read_all(REPORTS)), "README.md") == text


def test_the_document_has_a_chapter_for_each_machine(tmp_path, capsys):
    records = Records(tmp_path / "cpu-training.csv", {})
    for found in (DENSE, SPARSE, {**SPARSE, "phase": "forward"}):
        records.add(**found)
    layer = {"report": "kernels", "subject": "conv", "phase": "forward", "density": "0.2"}
    records.add(**{**SPARSE, **layer, "device": "NVIDIA H200", "roofline": "0.25"})
    two = {**SPARSE, "threads": "2"}
    records.add(**two)
    records.add(**{**two, "phase": "products", "p50_ms": "100"})
    report.main(["--reports", str(tmp_path), "--print"])
    text = capsys.readouterr().out
    assert "## CPU x, 1 thread" in text
    assert "## CPU x, 2 threads" in text
    assert "![speedup](cpu-speedup.png)" in text
    assert "![speedup](cpu-2-threads-speedup.png)" in text
    assert "| 400.00 | 100.00 | 75% |" in text
    assert "## NVIDIA H200" in text
    assert "| wrn16-8, 32 | 0.8, uniform, 64x64 | auto | sparse | 3 | 400 (190-210) |" in text
    assert text.count("### Training steps") == 2
    assert "| 25% |" in text
    assert [path.name for path in tmp_path.iterdir()] == ["cpu-training.csv"]


def test_a_rehearsal_is_no_report(tmp_path, capsys):
    Records(tmp_path / "rehearsal-all.csv", {"run": "1"}).add(**{**SPARSE, "device": "rehearsal"})
    before = {path: path.read_bytes() for path in (report.README, *tmp_path.iterdir())}
    with pytest.raises(InputError, match=r"^rows of device 'rehearsal' were not measured"):
        report.main(["--reports", str(tmp_path)])
    assert {path: path.read_bytes() for path in (report.README, *tmp_path.iterdir())} == before
    assert capsys.readouterr().out == ""
