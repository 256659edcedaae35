"""Commands that refuse bad input: exit code 2, one line on stderr, and nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_engine.config.flags import run_command


def command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"sparse_engine.{module}", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        # Several threads wait for each other on a busy machine.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def files():
    return {str(p): p.is_file() and p.read_bytes() for p in Path().rglob("*")}


def assert_refused(message, module, *arguments):
    """Check what a process of its own does with bad input."""
    before = files()
    done = command(module, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, message)
    assert files() == before


def assert_refused_here(message, monkeypatch, capfd, main, *arguments):
    """Check the same in this process, which has imported torch already."""
    before = files()
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    printed = capfd.readouterr()
    assert (stop.value.code, printed.out) == (2, "")
    assert_one_line(printed.err, message)
    assert files() == before


def assert_one_line(stderr, message):
    assert stderr.startswith("error: ")
    assert message in stderr
    assert (stderr.count("\n"), stderr[-1]) == (1, "\n")
