"""What Triton builds its launchers with is missed in one line, before anything runs."""

from pathlib import Path

import pytest

from bench.speed import toolchain
from sparse_engine.errors import InputError


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with what is put into it: programs, and Python.h."""
    programs: set[str] = set()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: name if name in programs else None)
    monkeypatch.setattr(toolchain, "_headers", lambda: tmp_path)
    (tmp_path / "Python.h").touch()
    return programs


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_compiler_and_headers_are_enough(machine, compiler):
    machine.add(compiler)
    toolchain.check_tools()


def test_a_compiler_of_ones_own(machine, monkeypatch):
    machine.update(("gcc", "mine"))
    monkeypatch.setenv("CC", "mine")
    toolchain.check_tools()
    monkeypatch.setenv("CC", "absent")
    with pytest.raises(InputError, match="no C compiler: CC=absent is not there; Triton needs one"):
        toolchain.check_tools()


def test_without_a_compiler(machine):
    line = r"no C compiler: Triton needs one \(gcc or clang, or CC=...\) and Python's headers$"
    with pytest.raises(InputError, match=line):
        toolchain.check_tools()
    machine.add("cc")  # which Triton does not look for
    with pytest.raises(InputError, match=r"headers; set CC=cc$"):
        toolchain.check_tools()


def test_without_headers(machine, tmp_path):
    machine.add("gcc")
    (tmp_path / "Python.h").unlink()
    with pytest.raises(InputError, match=r"no Python headers: .*Python.h' is not there"):
        toolchain.check_tools()


def test_triton_looks_where_we_do():
    build = pytest.importorskip("triton.runtime.build")
    text = Path(build.__file__).read_text(encoding="utf-8")
    for word in ('"CC"', 'which("clang")', 'which("gcc")', "posix_local", '["include"]'):
        assert word in text
