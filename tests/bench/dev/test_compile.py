"""The kernels compile for every GPU generation, and the committed table is current."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from bench.dev.compile import TABLE, source_hash

ROOT = Path(__file__).parents[3]
# The tiles are chosen for Triton 3.8. Older ones put two registers of these kernels on the stack.
OLDER = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
SMALL_SPILL = re.compile(r"arch=120, .* tma=True, .*: stack 8, \d spills$")


def compile_kernels(*arguments: str) -> list[str]:
    """Run bench.dev.compile where kernels are compiled, not interpreted; return what it prints."""
    command = [sys.executable, "-m", "bench.dev.compile", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    *bad, counts = done.stderr.splitlines()
    assert re.fullmatch(r"\d+ compiled, \d+ bad", counts), done.stderr[-2000:]
    bad = [line for line in bad if not (OLDER and SMALL_SPILL.search(line))]
    assert done.returncode == 0 or not bad, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_a_sample_compiles_without_spills():
    facts, *lines = compile_kernels("--sample", "12")
    rows = list(csv.DictReader(lines))
    assert 12 <= len(rows) < 20
    assert {"sm_80", "sm_90", "sm_100"} <= {row["gpu"] for row in rows}
    for row in rows:
        gathers = row["pass"] in ("forward", "input gradient")
        if gathers and (row["gpu"], row["type"]) == ("sm_90", "bf16"):
            assert "wgmma" in row["instructions"]
        if row["variant"].startswith("tma"):
            assert "tma" in row["instructions"]
    assert any("runs of" in row["variant"] for row in rows)  # which fail with fewer buffers
    committed = TABLE.read_text(encoding="utf-8").splitlines()
    if committed[0] == facts:  # by this compiler
        assert set(lines) <= set(committed)


@pytest.mark.slow
def test_every_configuration_compiles():
    assert compile_kernels()


def test_the_committed_table_is_current():
    facts = TABLE.read_text(encoding="utf-8").partition("\n")[0]
    assert f"sources {source_hash()}," in facts, (
        "kernels or tiles changed: python -m bench.dev.compile --write"
    )
