"""`bench.gpu --rehearse`: the plan without a GPU; what goes wrong costs its own row alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu import rehearsal
from bench.report.records import REHEARSAL, read_all

ROOT = Path(__file__).parents[3]
FAULTS = ("capture:1", "compile:2", "kill:3", "memory:5")


def rehearsed(capsys, *arguments: str) -> tuple[int, dict, str]:
    """Return exit code, the JSON of the last line, and all that was printed."""
    code = gpu.main(["--rehearse", *arguments])
    text = capsys.readouterr().out
    return code, json.loads(text.strip().splitlines()[-1]), text


@pytest.mark.slow
def test_each_fault_costs_its_own_row_and_no_other(tmp_path, capsys):
    """But for one that hangs, which costs its supervisor's patience: see test_supervisor.py."""
    faults = [f"--fault={fault}" for fault in FAULTS]
    code, found, text = rehearsed(capsys, "--tiny", "--out", str(tmp_path), *faults)
    assert code == 1
    assert "results right" in text  # the smoke of job 0
    lost = "\n".join(found["failures"])
    assert "dense captured: RuntimeError: capture fails" in lost
    assert "triton rows fuse captured: RuntimeError: compile fails" in lost
    assert "job 3 ended its worker" in lost
    assert "OutOfMemoryError: memory fails" in lost
    assert found["failed"] == len(found["failures"])
    # Of job 4 all, and of job 5 the dense library's passes and the masked path's.
    rows = read_all(tmp_path)
    assert {row["contender"] for row in rows} == {"auto", "dense", "masked rows"}
    assert len(rows) == found["rows_planned"] == 7
    assert {row["device"] for row in rows} == {REHEARSAL}
    assert " ms" not in text  # nothing was measured


@pytest.mark.slow
def test_the_whole_plan_goes_through(tmp_path, capsys):
    code, found, _ = rehearsed(capsys, "--out", str(tmp_path))
    assert (code, found["failures"]) == (0, [])
    assert found["kernels_compiled"] > 100
    assert found["rows_planned"] > found["jobs"] > 80


def test_a_kernel_that_does_not_compile_or_spills_is_a_failure():
    code = """
if __name__ == "__main__":
    from fake_gpu.compiler import Compiled, Compiler
    compiler = Compiler(90, 0)
    for stack, shared in ((0, 1000), (8, 1000), (0, 300_000)):
        print(compiler.problem(Compiled("k", 32, stack, shared, 0.0)) or "fine")
"""
    environment = {"PYTHONPATH": "kernels:.:tests/helpers", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stdout.splitlines() == [
        "fine",
        "k spills 8 bytes",
        "k needs 300000 bytes of shared memory, there are 232448",
    ], done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rehearse", "sm_70"], "knows no 'sm_70'; choose from sm_80, sm_89, sm_90"),
        (["--rehearse", "sm_90"], "needs triton, which is not here"),
    ],
)
def test_bad_input_is_one_line(arguments, message, monkeypatch, capsys):
    if "triton" in message:
        monkeypatch.setitem(sys.modules, "triton", None)
    assert gpu.main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_with_a_gpu_it_says_that_it_only_compiles(monkeypatch, capsys):
    monkeypatch.setattr(rehearsal, "gpu_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(rehearsal, "supervise", lambda *_: 0)
    assert gpu.main(["--rehearse", "sm_80"]) == 0
    assert "there is a GPU here (NVIDIA H200); this compiles for sm_80 only" in (
        capsys.readouterr().out
    )
