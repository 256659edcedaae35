"""The project's own tests of the GPU, those that take seconds, in a process of their own."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from bench.speed.machine import ROOT

LIMIT = 40.0  # seconds
FILES = ("tests/kernels/test_gpu.py", "tests/training/test_step.py")
# Graphs, streams and waiting; not those that fill the memory, tune, or repeat thousands of times.
CHOSEN = "graph_stays or waits or not_wait or stream or bit_for_bit or inside_a_captured or follows"
# The project's own options want plugins that need not be here; lines are not cut.
ENVIRONMENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "250"}
OPTIONS = ("-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider")


class TestsFailed(AssertionError):
    """Tests that failed or could not run; the message names the first one."""


def run_tests(
    files: Sequence[str] = FILES, chosen: str = CHOSEN, limit: float = LIMIT, collect: bool = False
) -> None:
    """Run tests with the mark gpu, and print in one line how many passed.

    With `collect` they are only found, without a GPU.

    Where time runs out first, those that ran have passed; without pytest nothing is run.

    Raises:
        TestsFailed: one failed.
    """
    if importlib.util.find_spec("pytest") is None:
        print("GPU tests: left out, pytest is not installed", flush=True)
        return
    command = [sys.executable, "-m", "pytest", *OPTIONS, "-m", "gpu", "-x", "-v", "-k", chosen]
    command += ["--collect-only"] * collect
    where = {"cwd": ROOT, "env": {**os.environ, **ENVIRONMENT}}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                [*command, *files], stdout=output, stderr=output, timeout=limit, **where
            )
            code, end = done.returncode, ""
        except subprocess.TimeoutExpired:
            code, end = 0, f", then {limit:.0f} s were over"
        output.seek(0)
        text = output.read()
    if code:
        raise TestsFailed(_first_failure(text))
    counts = {word: len(re.findall(rf" {word}\b", text)) for word in ("PASSED", "SKIPPED")}
    skipped = f", {counts['SKIPPED']} skipped" * bool(counts["SKIPPED"])
    print(f"GPU tests: {counts['PASSED']} passed{skipped}{end}", flush=True)


def _first_failure(text: str) -> str:
    failure = re.search(r"^(?:FAILED|ERROR) (.+)$", text, re.MULTILINE)
    lines = text.strip().splitlines() or ["no output"]
    return failure[1] if failure else lines[-1]
