"""README is short, its measured tables are there, and its program runs as printed."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 160] == []


def test_measured_tables_and_the_picture_come_first():
    head = README.partition("## Install")[0]
    speed = head.partition("<!-- speed table -->")[2].partition("<!-- end of speed table -->")[0]
    assert "| device |" in speed
    assert "docs/figures/demo.png" in head
    rows = re.findall(r"^\| .* \| ([\d.]+ ± [\d.]+) \| ([\d.]+) \|", README, re.MULTILINE)
    assert len(rows) >= 4
    measured = (ROOT / "docs" / "results" / "full-length.md").read_text(encoding="utf-8")
    for accuracy, likelihood in rows:
        assert re.search(rf"\| {accuracy} \|[^|]*\| {likelihood} \|", measured), accuracy


def test_the_program_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "SparseConv2d" in printed
    assert "1 topology updated" in printed
    assert (tmp_path / "dense.pt").is_file()
