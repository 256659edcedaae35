"""The wheel that users install, built from this checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build_wheel(folder: Path) -> Path:
    """Build the wheel in a folder, leaving the checkout as it is; return its file."""
    pytest.importorskip("setuptools", "77", reason="setuptools 77 builds the wheel")
    build = ["build", "--build-base", str(folder / "build"), "egg_info", "--egg-base", str(folder)]
    command = [sys.executable, "setup.py", "-q", *build, "bdist_wheel", "--dist-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    return wheel
