"""Tables and figures say what the CSVs hold, and the README's table is made from them."""

import math
import sys

import pytest

from bench.report import __main__ as report
from bench.report import tables
from bench.report.figures import break_even
from bench.report.records import COLUMNS, REPORTS, Records, read_all
from sparse_engine.errors import InputError

STEP = {
    "run": "1", "report": "training", "device": "CPU x", "threads": "1", "dtype": "fp32",
    "subject": "wrn16-8", "batch": "32", "phase": "step", "p20_ms": "190", "p80_ms": "210",
    "n": "3", "dense_ms": "1000", "against": "dense", "flops_ratio": "0.2", "density": "0.2",
}  # fmt: skip


def row(**values) -> dict[str, str]:
    return {**dict.fromkeys(COLUMNS, ""), **STEP, **values}


DENSE = row(contender="dense", label="dense", p50_ms="1000", state_mb="100", density="1")
SPARSE = row(
    contender="auto",
    label="sparse",
    sparsity="0.8",
    distribution="uniform",
    block="64x64",
    p50_ms="400",
    state_mb="20",
    ratio_p20="0.39",
    ratio_p80="0.41",
)


def test_the_readme_has_the_table_of_the_committed_rows():
    text = report.README.read_text(encoding="utf-8")
    assert report.readme_block(read_all(REPORTS)) in text


def test_what_a_saving_is_worth():
    assert tables.time_ratio(SPARSE) == 0.4
    assert tables.realised(SPARSE) == pytest.approx(0.6 / 0.8)
    assert tables.ensemble_seconds(SPARSE) == pytest.approx(0.72)
    table = tables.savings([DENSE, SPARSE, {**SPARSE, "label": "dense"}])
    lines = table.splitlines()[2:]
    assert lines[0].endswith("| 0.40 | 0.20 | 75% | 0.72 |")
    assert lines[1].endswith("| - |")  # what ran dense projects nothing


def test_the_speed_table_shows_the_fastest_sparse_step():
    slower = {**SPARSE, "contender": "gemm", "p50_ms": "500"}
    dense_one = {**SPARSE, "contender": "masked", "p50_ms": "100", "label": "dense"}
    table = tables.speed_table([DENSE, slower, SPARSE, dense_one]).splitlines()
    assert table[2].startswith("| NVIDIA GPU | wrn28-10, 128 | not measured |")
    cells = [cell.strip() for cell in table[3].strip("|").split("|")]
    assert cells[0] == "CPU x, 1 thread, fp32"
    assert cells[3:] == ["1000 ms", "0.40 (0.39-0.41)", "0.20", "0.72", "0.20", "-"]
    assert len(table) == 4


def test_the_last_row_of_a_thing_counts():
    again = {**SPARSE, "run": "2", "p50_ms": "300"}
    assert tables.latest([SPARSE, DENSE, again]) == [again, DENSE]
    gpu = {**SPARSE, "device": "NVIDIA H200", "dtype": "bf16"}
    table = tables.speed_table([DENSE, SPARSE, gpu])
    assert "not measured" not in table
    assert table.splitlines()[2].startswith("| NVIDIA H200, bf16 |")


def test_dense_rows_of_the_same_run_come_first():
    faster = {**DENSE, "run": "0", "p50_ms": "10"}
    compiled = {**DENSE, "contender": "dense compiled", "p50_ms": "900"}
    assert tables.partner(SPARSE, [faster, DENSE, compiled, SPARSE]) is compiled
    assert tables.partner(SPARSE, [faster]) is faster
    assert tables.partner(SPARSE, [{**DENSE, "batch": "8"}]) is None


def test_break_even_lies_between_its_neighbours():
    points = [(0.1, 4.0), (0.2, 2.0), (0.8, 0.5)]
    assert break_even(points) == pytest.approx(0.4)
    assert math.isclose(break_even([(0.1, 1.0), (0.2, 0.5)]), 0.1)
    assert break_even(points[:2]) is None
    assert break_even([]) is None


def test_a_readme_without_marks_is_refused():
    block = report.readme_block([DENSE, SPARSE])
    changed = report.with_block(f"a {report.BEGIN} old {report.END} b", block)
    assert changed == f"a {block} b"
    with pytest.raises(InputError, match="needs the marks"):
        report.with_block("nothing", block)


def test_the_document_has_a_chapter_for_each_device(monkeypatch, tmp_path, capsys):
    records = Records(tmp_path / "cpu-training.csv", {})
    for found in (DENSE, SPARSE, {**SPARSE, "phase": "forward"}):
        records.add(**found)
    layer = {"report": "kernels", "subject": "conv", "phase": "forward", "density": "0.2"}
    records.add(**{**SPARSE, **layer, "device": "NVIDIA H200", "roofline": "0.25"})
    monkeypatch.setattr(sys, "argv", ["report", "--reports", str(tmp_path), "--print"])
    report.main()
    text = capsys.readouterr().out
    assert "## CPU x" in text
    assert "## NVIDIA H200" in text
    assert "| wrn16-8, 32 | 0.8, uniform, 64x64 | auto | sparse | 3 | 400 (190-210) |" in text
    assert text.count("### Training steps") == 1
    assert "| 25% |" in text
    assert [path.name for path in tmp_path.iterdir()] == ["cpu-training.csv"]


def test_figures_show_every_row(tmp_path, monkeypatch):
    from bench.report import figures

    drawn: dict[str, Axes] = {}

    def save(draw, bars, path):
        draw(drawn.setdefault(path.name, Axes()))
        return path

    monkeypatch.setattr(figures, "_save", save)
    memory = {**SPARSE, "peak_mb": "50"}
    slow = {**SPARSE, "density": "0.5", "p50_ms": "1600", "sparsity": "0.5"}
    parts = [{**SPARSE, "phase": p, "p50_ms": "100"} for p in ("forward", "topology update")]
    figures.draw_all([DENSE, memory, slow, *parts], tmp_path, "cpu")
    assert set(drawn) == {"cpu-speedup.png", "cpu-breakdown.png", "cpu-memory.png"}
    (line,) = drawn["cpu-speedup.png"].called("plot")
    assert line == ((0.2, 0.5), (2.5, 0.625))
    ((density,),) = drawn["cpu-speedup.png"].called("axvline")
    assert 0.2 < density < 0.5
    bars = {widths for _, widths in drawn["cpu-breakdown.png"].called("barh")}
    # Two phases of the step that has any, whole steps of the two that have none.
    assert bars == {(0, 0, 0), (0, 100, 0), (1000, 0, 1600)}
    (peak, _) = drawn["cpu-memory.png"].called("barh")
    assert peak[1] == (0.0, 50.0, 0.0)


class Axes:
    """Records what is drawn, in place of matplotlib's; what our figures do not use is missing."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        known = "plot", "barh", "axvline", "axhline", "set", "legend", "invert_yaxis", "tick_params"
        if name not in known:
            raise AttributeError(name)

        def call(*values, **options):
            self.calls.append((name, tuple(map(_frozen, values))))
            return [self]

        return call

    def get_color(self):
        return "blue"

    def called(self, wanted):
        return [values for name, values in self.calls if name == wanted]


def _frozen(value):
    return tuple(value) if isinstance(value, list | tuple) else value


def test_a_rehearsal_is_no_report(monkeypatch, tmp_path, capsys):
    Records(tmp_path / "rehearsal-all.csv", {"run": "1"}).add(**{**SPARSE, "device": "rehearsal"})
    before = {path: path.read_bytes() for path in (report.README, *tmp_path.iterdir())}
    monkeypatch.setattr(sys, "argv", ["report", "--reports", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: rows of device 'rehearsal' were not measured"):
        report.main()
    assert {path: path.read_bytes() for path in (report.README, *tmp_path.iterdir())} == before
    assert capsys.readouterr().out == ""
