"""How commands end: signals, and a standard output that nobody reads. Real processes, no torch."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import os, signal, sys, time
from sparse_engine.config.flags import run_command
from sparse_engine.errors import InputError
me = os.getpid()
"""
PRINTS = """
def command(arguments):
    for _ in range(3_000):
        print("x" * 100, flush=True)
        print("y", file=sys.stderr)
    open("written", "w").write("all")
run_command(command)
"""


def run(code, shell='"$@"'):
    """Run a command through a shell; return its exit code and standard error."""
    Path("written").unlink(missing_ok=True)
    line = f"set -o pipefail; {shell}"
    done = subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, "-c", BEGIN + code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize(
    ("shell", "code", "words"),
    [
        ('"$@" 2>/dev/null | head -1', 141, ""),
        ('"$@" 2>&1 | head -1', 141, ""),
        ('"$@" 2>log >/dev/full; c=$?; tail -1 log >&2; exit $c', 1, "No space left on device"),
        ('"$@" >/dev/full 2>&1', 1, ""),
        ('"$@" >&- 2>&- <&-', 0, ""),
        ('"$@" 2>/dev/full', 0, ""),
        ('PYTHONUNBUFFERED=1 "$@" 2>/dev/null | head -1', 141, ""),
    ],
)
def test_output_that_is_not_taken_changes_nothing_else(shell, code, words):
    found, err = run(PRINTS, shell)
    assert (found, words in err, err.count("\n")) == (code, True, bool(words)), err
    assert Path("written").read_text() == "all"


@pytest.mark.usefixtures("own_folder")
def test_what_has_no_code_is_written_as_an_escape():
    code = 'run_command(lambda a: print("\\u00fc \\udcff"))'
    assert run(code, 'PYTHONIOENCODING=ascii "$@" >out') == (0, "")
    assert Path("out").read_text() == "\\xfc \\udcff\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_unwinds_a_command_once(name):
    code = f"""
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
def command(arguments):
    try:
        os.kill(me, signal.{name})
        time.sleep(9)
    finally:
        os.kill(me, signal.{name})  # torchrun sends a second
        print("tidied", file=sys.stderr)
run_command(command)
"""
    assert run(code) == (128 + signal.Signals[name], f"tidied\ninterrupted by {name}\n")


def test_a_signal_that_another_library_makes_an_error_of():
    code = """
def command(arguments):
    try:
        os.kill(me, signal.SIGTERM)
        time.sleep(9)
    except BaseException:
        raise ImportError("cannot load module more than once per process")
run_command(command)
"""
    assert run(code) == (143, "interrupted by SIGTERM\n")
    code = """
class Freed:
    def __del__(self):
        os.kill(me, signal.SIGTERM)
        time.sleep(0.01)
def command(arguments):
    Freed()
    time.sleep(9)
run_command(command)
"""
    assert run(code) == (143, "interrupted by SIGTERM\n")


def test_a_terminal_that_closes_is_nothing_to_nohup():
    code = "run_command(lambda a: os.kill(me, signal.SIGHUP))"
    assert run(code, 'trap "" HUP; "$@"') == (0, "")


def test_a_working_folder_that_is_gone(tmp_path):
    shell = f'cd "$(mktemp -d -p {tmp_path})"; rmdir "$PWD"; "$@"'
    code, err = run(
        "run_command(lambda a: 0)", f"export PYTHONPATH={os.pathsep.join(sys.path)}; {shell}"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: the working folder is gone")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("open('/no/such')", 1, "failed: '/no/such': No such file or directory\n"),
        ("sys.exit('error: words')", 1, "error: words\n"),
        ("7", 7, ""),
    ],
)
def test_other_ends(words, code, line):
    assert run(f"run_command(lambda a: {words})") == (code, line)
