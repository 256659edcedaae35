"""What a machine has: the driver's word for the GPU, every line of code, a C compiler."""

from pathlib import Path

import pytest

from bench.speed import machine
from sparse_engine.errors import InputError


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """A machine with what is put into it: programs, and Python.h."""
    found: set[str] = set()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: name if name in found else None)
    monkeypatch.setattr(machine, "_headers", lambda: tmp_path)
    (tmp_path / "Python.h").touch()
    return found


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_compiler_and_headers_are_enough(programs, compiler):
    programs.add(compiler)
    machine.check_tools()


def test_a_compiler_of_ones_own(programs, monkeypatch):
    programs.update(("gcc", "mine"))
    monkeypatch.setenv("CC", "mine")
    machine.check_tools()
    monkeypatch.setenv("CC", "absent")
    with pytest.raises(InputError, match="no C compiler: CC=absent is not there; Triton needs one"):
        machine.check_tools()


def test_without_a_compiler(programs):
    line = r"no C compiler: Triton needs one \(gcc or clang, or CC=...\) and Python's headers$"
    with pytest.raises(InputError, match=line):
        machine.check_tools()
    programs.add("cc")  # which Triton does not look for
    with pytest.raises(InputError, match=r"headers; set CC=cc$"):
        machine.check_tools()


def test_without_headers(programs, tmp_path):
    programs.add("gcc")
    (tmp_path / "Python.h").unlink()
    with pytest.raises(InputError, match=r"no Python headers: .*Python.h' is not there"):
        machine.check_tools()


def test_triton_looks_where_we_do():
    build = pytest.importorskip("triton.runtime.build")
    text = Path(build.__file__).read_text(encoding="utf-8")
    for word in ('"CC"', 'which("clang")', 'which("gcc")', "posix_local", '["include"]'):
        assert word in text


def test_the_driver_names_the_first_gpu(monkeypatch):
    class Driver:
        gpus, works = ["NVIDIA H100 80GB HBM3", "NVIDIA T4"], True

        def cuInit(self, _):
            return 0 if self.works else 100

        def cuDeviceGetCount(self, count):
            count._obj.value = len(self.gpus)
            return 0

        def cuDeviceGet(self, device, number):
            device._obj.value = number
            return 0

        def cuDeviceGetName(self, name, length, device):
            name.value = self.gpus[device.value].encode()[: length - 1]
            return 0

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Driver())
    assert machine.gpu_name() == "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(Driver, "works", False)
    assert machine.gpu_name() is None
    monkeypatch.setattr(Driver, "works", True)
    monkeypatch.setattr(Driver, "gpus", [])
    assert machine.gpu_name() is None

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(machine.ctypes, "CDLL", absent)
    assert machine.gpu_name() is None


def test_facts_change_with_device_commit_and_code(monkeypatch, tmp_path):
    before = machine.facts("NVIDIA H100", "whole")
    assert before == machine.facts("NVIDIA H100", "whole")
    assert before != machine.facts("NVIDIA H200", "whole")
    monkeypatch.setenv("COMMIT", "another")
    assert before != machine.facts("NVIDIA H100", "whole")
    monkeypatch.delenv("COMMIT")
    monkeypatch.setattr(machine, "CODE", ("bench",))
    assert before != machine.facts("NVIDIA H100", "whole")
