"""Tables say what the rows hold: the latest of each thing, against the right dense one."""

import pytest
from report_rows import DENSE, SPARSE

from bench.report import tables
from sparse_engine.errors import InputError


def test_what_a_saving_is_worth():
    assert tables.time_ratio(SPARSE) == 0.4
    assert tables.realised(SPARSE) == pytest.approx(0.6 / 0.8)
    assert tables.ensemble_seconds(SPARSE) == pytest.approx(0.72)
    table = tables.savings([DENSE, SPARSE, {**SPARSE, "label": "dense"}])
    lines = table.splitlines()[2:]
    assert lines[0].endswith("| 0.40 | 0.20 | 75% | 0.72 |")
    assert lines[1].endswith("| - |")  # what ran dense projects nothing


def test_the_speed_table_shows_the_fastest_sparse_step():
    slower = {**SPARSE, "contender": "native", "p50_ms": "500"}
    dense_one = {**SPARSE, "contender": "masked", "p50_ms": "100", "label": "dense"}
    table = tables.speed_table([DENSE, slower, SPARSE, dense_one]).splitlines()
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells[0] == "x, 1 thread, fp32"
    assert cells[3:] == ["1000 ms", "0.40 (0.39-0.41)", "0.20", "0.72", "0.20"]
    assert len(table) == 3


def test_the_speed_table_has_the_same_step_with_more_threads_and_the_slim_network():
    two = {**SPARSE, "threads": "2", "p50_ms": "200", "dense_ms": "400"}
    slim = {**SPARSE, "contender": "slim", "label": "dense", "p50_ms": "250"}
    headings, _, *lines = tables.speed_table([DENSE, two, SPARSE, slim]).splitlines()
    assert "| sparse / dense | with 2 threads | slim / dense |" in headings
    assert "| 0.40 (0.39-0.41) | 0.50 (0.39-0.41) | 0.25 |" in lines[0]
    assert len(lines) == 1


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


def test_a_document_without_marks_is_refused():
    text = "a <!-- some --> old <!-- end of some --> b"
    changed = tables.with_block(text, "some", "new", "README.md")
    assert changed == "a <!-- some -->\n\nnew\n\n<!-- end of some --> b"
    with pytest.raises(InputError, match=r"README.md needs the marks <!-- some --> and"):
        tables.with_block("nothing", "some", "new", "README.md")
