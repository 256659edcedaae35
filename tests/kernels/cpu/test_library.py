"""The native kernels' library: how it is built, kept, refused, and used by threads and forks."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sanitized import run_sanitized

from sparse_kernels.cpu import compiler, library
from sparse_kernels.cpu.compiler import CannotCompile
from sparse_kernels.cpu.private_folder import private_folder
from sparse_kernels.measurements import FOLDER

CALL = """
import ctypes, os, signal, sys, threading, torch
from pathlib import Path
from sparse_kernels.cpu import library

def results(threads, count=5000):
    values = (ctypes.c_float * count)(*range(count))
    library.library().probe(values, ctypes.c_int64(count), threads)
    return list(values)

def children(number):
    for _ in range(number):
        if os.fork() == 0:
            signal.alarm(30)
            assert all(results(t) == EXPECTED for t in (1, 2, 8) for _ in range(4))
            os._exit(7)

def wait(number):
    assert all(os.waitstatus_to_exitcode(os.wait()[1]) == 7 for _ in range(number))

EXPECTED = [3.0 * i for i in range(5000)]
"""
PROCESSES = f"""{CALL}
assert library._found is None, "built by an import"
library.SOURCE = Path(sys.argv[1])
children(4)  # which build it at the same time
wait(4)
torch.set_num_threads(2)
(torch.ones(10**6) * 2).sum()
assert all(results(2) == EXPECTED for _ in range(20)), "in the runtime's threads"
children(2)
wait(2)
library.library().use_runtime(None)
callers = [threading.Thread(target=lambda: [results(3) for _ in range(99)]) for _ in range(4)]
[caller.start() for caller in callers]
assert all(results(4) == EXPECTED for _ in range(20)), "in threads of our own"
children(2)
[caller.join() for caller in callers]
wait(2)
assert results(2) == EXPECTED
"""
WRITES_NONSENSE = """
echo __cplusplus
for word in "$@"; do case $word in *native.so) echo nonsense > "$word";; esac; done
"""
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, compiler.USUAL)), reason="needs a C++ compiler"
)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Look for the library anew, in a cache of the test's own."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.delenv(compiler.VARIABLE, raising=False)
    monkeypatch.setattr(library, "_found", None)
    return tmp_path / library.FOLDER


@pytest.fixture
def small(fresh, tmp_path, monkeypatch):
    """Compile the probe alone, in less time than all kernels take."""
    monkeypatch.setattr(library, "SOURCE", tmp_path / "source")
    (tmp_path / "source").mkdir()
    for name in ("probe.cpp", "threads.cpp", "threads.h"):
        shutil.copy(Path(library.__file__).parent / "source" / name, tmp_path / "source")
    monkeypatch.setenv(compiler.VARIABLE, f"{_compiler()} -O0")
    return fresh


def _compiler() -> str:
    return next(filter(None, map(shutil.which, compiler.USUAL)), "none")


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _again(monkeypatch) -> ctypes.CDLL | None:
    monkeypatch.setattr(library, "_found", None)
    return library.library()


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


@needs_compiler
def test_results_do_not_depend_on_threads():
    loaded = library.library()
    assert loaded is not None, library.why_not()
    assert library.why_not() is None
    assert library.library() is loaded
    for threads in (1, 2, 3, 8, 8, 8):
        values = torch.arange(10_001.0)
        loaded.probe(ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(10_000), threads)
        assert values[:10_000].equal(3 * torch.arange(10_000.0))
        assert values[10_000] == 10_000


@needs_compiler
def test_processes_and_threads(small):
    command = [sys.executable, "-W", "ignore", "-c", PROCESSES, str(library.SOURCE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert [Path(name).suffix for name in _files(small)] == [".so"]


@needs_compiler
def test_what_is_kept(small, monkeypatch, caplog):
    assert library.library(), library.why_not()
    (name,) = _files(small)
    assert small.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as patch:
        patch.setattr(compiler.Compiler, "build", None)  # it is found again without compiling
        assert _again(patch)
    # What is damaged, or is not what its name says, is built anew; what nobody used is deleted.
    for junk in (b"", (small / name).read_bytes()[:-1], b"\x7fELF" + bytes(10_000)):
        (small / name).unlink()  # the file is mapped by this process, and stays so
        (small / name).write_bytes(junk)
        (small / "old.so").touch()
        os.utime(small / "old.so", (0, 0))
        assert _again(monkeypatch), library.why_not()
        assert "old.so" not in _files(small)
        assert (small / name).stat().st_size > len(junk)
    # Other sources and other options are other files.
    with (library.SOURCE / "probe.cpp").open("a") as file:
        file.write("// more\n")
    assert _again(monkeypatch)
    monkeypatch.setenv(compiler.VARIABLE, f"{_compiler()} -O0 -g")
    assert _again(monkeypatch)
    assert len(_files(small)) >= 3
    assert not caplog.records


@needs_compiler
@pytest.mark.parametrize("way", ["writable by others", "a link", "no folder", "full"])
def test_without_a_folder_that_is_private(way, small, tmp_path, monkeypatch, caplog):
    if way == "writable by others":
        small.mkdir()
        small.chmod(0o777)
    elif way == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        small.symlink_to(tmp_path / "elsewhere")
    elif way == "no folder":  # and none can be made, as where all is read-only
        monkeypatch.setenv(FOLDER, "/proc/no/such")
    else:
        library._warn_of_cost.cache_clear()
        monkeypatch.setattr(library.tempfile, "mkstemp", _no_space)
    assert library.library(), library.why_not()
    assert not small.exists() or not _files(small)
    (line,) = caplog.messages
    assert "compiled by each process anew, as they cannot be kept: " in line
    assert not list(Path(library.tempfile.gettempdir()).glob("sparse-engine-*/native.so"))


def _no_space(*_, **__):
    raise OSError(28, "No space left on device")


def test_folders_above(tmp_path, monkeypatch):
    folder = tmp_path / "all" / "mine"
    assert private_folder(folder) == folder
    for mode, refused in ((0o777, True), (0o1777, False), (0o775, False), (0o755, False)):
        folder.parent.chmod(mode)
        if refused:
            with pytest.raises(PermissionError, match=r"others can write '.*/all'"):
                private_folder(folder)
        else:
            private_folder(folder)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="only this user can write"):
        private_folder(folder)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", r"c\+\+ failed \(3\): $"),
        ("echo; echo 'x.h: error: worse' >&2; exit 1", r"c\+\+ failed \(1\): x.h: error: worse$"),
        ("echo nonsense", r"c\+\+ is no C\+\+ compiler$"),
        ("sleep 50 & sleep 50", r"c\+\+ had not ended after 0.2 seconds$"),
        ('echo "#define __cplusplus"', "wrote no library$"),
        (
            WRITES_NONSENSE,
            "what was compiled does not run here .*(too short|invalid ELF|not a mach-o)",
        ),
    ],
)
def test_compilers_that_fail(script, why, fresh, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(compiler.VARIABLE, _script(tmp_path / "c++", script))
    monkeypatch.setattr(compiler, "SECONDS", 0.2)
    began = time.perf_counter()
    assert library.library() is None
    assert library.library() is None
    assert time.perf_counter() - began < 10
    assert re.search(why, library.why_not())
    (line,) = caplog.messages
    assert library.why_not() in line
    assert "\n" not in line


@needs_compiler
def test_what_crashes_is_not_loaded(small, caplog):
    probe = library.SOURCE / "probe.cpp"
    probe.write_text('extern "C" void probe() { __builtin_trap(); }')
    assert library.library() is None
    assert "what was compiled does not run here (-4)" in library.why_not()
    assert not _files(small)


def test_which_compiler(fresh, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "bin").mkdir()
    assert _again(monkeypatch) is None
    assert re.search(r"no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\); ", library.why_not())
    _script(tmp_path / "bin" / "apt-get", "")
    compiler._how_to_install.cache_clear()
    assert _again(monkeypatch) is None
    assert library.why_not().endswith("apt-get install g++ brings one")
    compiler._how_to_install.cache_clear()
    for name in ("g++", "own"):
        _script(tmp_path / "bin" / name, f'echo "{name} $@" __cplusplus')
    monkeypatch.setenv("CXX", "own --fast")
    found = list(compiler.compilers())
    assert [Path(c.program[0]).name for c in found] == ["own", "g++"]
    assert found[0].flags[-1] == "--fast"
    assert "--fast" not in found[1].flags
    assert found[0].identity != found[1].identity
    monkeypatch.setenv(compiler.VARIABLE, f"{tmp_path}/bin/own g++ -x 'a b'")
    (found,) = compiler.compilers()
    assert found.program[1:] == ("g++",)
    assert found.flags[-2:] == ("-x", "a b")
    monkeypatch.setenv(compiler.VARIABLE, "/no/such 'thing")
    with pytest.raises(CannotCompile, match="no compiler '/no/such 'thing', which"):
        list(compiler.compilers())
    caplog.clear()
    monkeypatch.setenv(compiler.VARIABLE, "off")
    assert _again(monkeypatch) is None
    assert library.why_not() == "$SPARSE_ENGINE_CXX is off"
    assert not caplog.records
    assert not fresh.exists() or not _files(fresh)


@needs_compiler
def test_sources_without_warnings():
    files = sorted(map(str, library.SOURCE.glob("*.cpp")))
    flags = ["-std=c++17", "-march=native", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run([_compiler(), *flags, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@needs_compiler
def test_optimized_sources_without_warnings(fresh, monkeypatch):
    monkeypatch.setenv(compiler.VARIABLE, f"{_compiler()} -Wall -Wextra -Werror")
    assert library.library(), library.why_not()


@pytest.mark.slow
def test_sanitized():
    run_sanitized("-c", f"{CALL}\nassert results(4)[4999] == 3 * 4999, library.why_not()")
    outside = f"""{CALL}
x = torch.ones(1000)
library.library().probe(ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(1001), 1)"""
    with pytest.raises(AssertionError, match="AddressSanitizer: heap-buffer-overflow"):
        run_sanitized("-c", outside)


def test_it_needs_no_new_libstdcpp():
    """An environment's libstdc++, which Python has loaded before, may be older than g++'s."""
    if library.library() is None or sys.platform != "linux":
        pytest.skip("no library to read")
    needed = re.findall(rb"GLIBCXX_3\.4\.?(\d*)", Path(library.library()._name).read_bytes())
    assert max(int(number or 0) for number in needed or [0]) <= 21
