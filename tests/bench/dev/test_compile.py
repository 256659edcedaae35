"""The kernels compile for every GPU generation, and the committed table is current."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).parents[3]
# The tiles are chosen for Triton 3.8. Older ones put two registers of these kernels on the stack.
OLDER = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
SMALL_SPILL = re.compile(r"arch=120, .* rows=True, .*: stack 8, \d spills$")


def compile_kernels(*arguments: str) -> str:
    """Run bench.dev.compile where kernels are compiled, not interpreted; return what it prints."""
    command = [sys.executable, "-m", "bench.dev.compile", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    bad = [line for line in done.stderr.splitlines() if not (OLDER and SMALL_SPILL.search(line))]
    assert done.returncode == 0 or not bad, done.stderr[-2000:]
    return done.stdout


def test_a_sample_compiles_without_spills():
    printed = compile_kernels("--sample", "12")
    assert re.search(r"^1\d compiled, \d bad$", printed, re.MULTILINE)
    assert {f"sm_{arch}" for arch in (80, 90, 100)} <= set(re.findall(r"sm_\d+", printed))
    for row in printed.splitlines():
        gathers = "| forward |" in row or "| input gradient |" in row
        if gathers and "| sm_90 |" in row and "| bf16 |" in row:
            assert "wgmma" in row
        if "| rows |" in row:
            assert "tma" in row


@pytest.mark.slow
def test_every_configuration_compiles():
    assert " compiled, " in compile_kernels()


def test_the_committed_table_is_current():
    from bench.dev.compile import source_hash

    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert f"<!-- table {source_hash()} -->" in text, (
        "kernels or tiles changed: python -m bench.dev.compile --write docs/kernels.md"
    )
