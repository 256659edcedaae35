"""`make bench-gpu`: one line for what cannot be, a few files for what can, and it goes on."""

import json
import logging
import subprocess
import sys
import time

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu import plan, supervisor
from bench.report.records import read
from bench.speed import jobs
from bench.speed.journal import NAME


@pytest.fixture(autouse=True)
def _own_logger(monkeypatch):
    """Let go of the files that workers in this process write tracebacks to."""
    logger = logging.getLogger("bench.speed.jobs")
    monkeypatch.setattr(logger, "handlers", [])
    yield
    for handler in logger.handlers:
        handler.close()


@pytest.fixture
def no_gpu(monkeypatch):
    """Let there be none, whatever this machine has."""
    monkeypatch.setattr(gpu, "gpu_name", lambda: None)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_one_line_says_what_to_do(tmp_path, capsys):
    began = time.monotonic()
    assert gpu.main(["--out", str(tmp_path / "new")]) == 2
    assert time.monotonic() - began < 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "no CUDA GPU" in said.err
    assert "--rehearse" in said.err
    assert "make bench-cpu" in said.err
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_nothing_is_begun(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "gpu_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("bench.speed.machine.shutil.which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert gpu.main(["--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith("error: no C compiler: Triton needs one (gcc or")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_gpu")
def test_a_folder_that_cannot_be_one(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert gpu.main(["--tiny", "--out", str(tmp_path / "file")]) == 2
    (tmp_path / "other.csv").write_text("a,b\n")
    assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"error: --out must be a folder, and '{tmp_path / 'file'}' is a file"
    assert "has other columns" in said[1]
    assert len(said) == 2


def test_a_torch_without_a_gpu_is_refused_by_the_worker(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    flags = ["--worker", "--out", str(tmp_path), "--run", "now"]
    assert gpu.main(flags) == 2
    assert "cannot use the GPU; install one built for it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_gpu")
def test_the_tiny_plan_fills_one_file_and_goes_on(monkeypatch, tmp_path, capsys):
    """The workers run here; the first one ends after two jobs, as if its time were over."""

    monkeypatch.setattr(supervisor, "watch", lambda command, *_: (gpu.main(command[3:]), None))
    run_jobs, most = jobs.run_jobs, [99, 99, 2]
    monkeypatch.setattr(jobs, "run_jobs", lambda plan, *a: run_jobs(plan[: most.pop()], *a))
    flags = ["--tiny", "--out", str(tmp_path), "--budget", "1000"]
    assert gpu.main([*flags, "--run", "first"]) == 0
    said = capsys.readouterr().out
    assert "no row" not in said
    assert "continuing" not in said
    assert gpu.main([*flags, "--run", "second"]) == 0
    said = capsys.readouterr().out
    assert "continuing run first at job 2 of 4\n" in said
    assert "job 1 of 4" not in said
    assert "wrn10-2, 4" in said
    assert len(said) < 6000
    assert gpu.main(flags) == 0
    assert "continuing run first which has done all of its jobs" in capsys.readouterr().out
    rows = read(tmp_path / "cpu-all.csv")
    assert {row["report"] for row in rows} == {"training", "ensemble", "kernels"}
    assert {row["run"] for row in rows} == {"first"}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cpu-all.csv", "bench-gpu.log", NAME}


@pytest.mark.usefixtures("no_gpu")
def test_what_failed_is_repeated_only_when_asked(monkeypatch, tmp_path, capsys):
    """And what was lost with its device is taken up."""
    ran, lost = [], [True, False, False]

    def fail():
        ran.append("bad")
        raise RuntimeError("wrong")

    def lose():
        ran.append("lost")
        if lost.pop(0):
            raise SystemExit(jobs.DEVICE_LOST)

    def watch(command, *_):
        try:
            return gpu.main(command[3:]), (2, "end")
        except SystemExit as end:
            return end.code, (1, "lost")

    names = {"bad": fail, "lost": lose, "end": lambda: ran.append("end")}
    monkeypatch.setattr(plan, "jobs", lambda *_: [jobs.Job(n, 1, run) for n, run in names.items()])
    monkeypatch.setattr(supervisor, "watch", watch)
    flags = ["--tiny", "--out", str(tmp_path), "--budget", "1000"]
    found = []
    for more in ([], [], ["--again"]):
        ran.clear()
        gpu.main([*flags, *more])
        found.append(list(ran))
    assert found == [["bad", "lost", "end"], ["lost"], ["bad"]]
    assert "continuing run" in capsys.readouterr().out


def test_a_failure_is_one_line_and_a_traceback_in_a_file(monkeypatch, tmp_path, capsys):
    def fail(*_):
        raise RuntimeError("PTXAS error\n`ptxas` stderr: what it really was")

    monkeypatch.setattr(plan, "jobs", lambda *_: [jobs.Job("bad", 1, fail)])
    flags = ["--worker", "--tiny", "--run", "now", "--out", str(tmp_path), "--budget", "99"]
    assert gpu.main(flags) == 0
    assert "no row: bad: RuntimeError: PTXAS error\n" in capsys.readouterr().out
    text = (tmp_path / "bench-gpu.failures").read_text()
    assert text.startswith("no row: bad\nTraceback")
    assert "what it really was" in text


@pytest.mark.usefixtures("no_gpu")
def test_without_time_there_is_the_table(tmp_path, capsys):
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--budget", "0"]) == 1
    assert capsys.readouterr().out == "no rows\n"
    assert json.loads((tmp_path / NAME).read_text())["facts"]["plan"] == "tiny"


def test_what_supervises_needs_no_torch():
    code = "import sys, bench.gpu, bench.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
