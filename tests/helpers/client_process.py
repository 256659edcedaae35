"""Runs a program that uses somebody else's trainer, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def printed(*arguments: str, folder: Path) -> list[str]:
    """Return the lines that `python ARGUMENTS` prints; it may warn, and must not fail."""
    paths = [ROOT, ROOT / "kernels", ROOT / "tests" / "helpers"]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def results_of(worker: str, folder: Path) -> dict[str, Any]:
    """Return what a worker of tests/helpers prints as its last line, JSON."""
    lines = printed(str(ROOT / "tests" / "helpers" / worker), str(folder), folder=folder)
    return json.loads(lines[-1])
