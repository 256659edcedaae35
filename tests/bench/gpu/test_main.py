"""`make bench-gpu`: workers that die or hang cost one job; a budget holds; a few files come out."""

import json
import logging
import subprocess
import sys
import time

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu import driver, gpu_tests, plan
from bench.report.records import read
from bench.speed import jobs
from bench.speed.journal import NAME, Journal

# A worker of six jobs, of which some kill it, when it gets there.
WORKER = """
import os, sys, time
first = int(sys.argv[sys.argv.index("--first") + 1])
for job in range(first, 6):
    print(f"job {job} of 6: name, of {job}, about 0 s", flush=True)
    if job == 1: sys.exit(3)
    if job == 2: os.kill(os.getpid(), 9)
    if job == 3: raise RuntimeError("a traceback")
    if job == 4: time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_logger(monkeypatch):
    """Let go of the files that workers in this process write tracebacks to."""
    logger = logging.getLogger("bench.speed.jobs")
    monkeypatch.setattr(logger, "handlers", [])
    yield
    for handler in logger.handlers:
        handler.close()


def test_a_worker_that_dies_or_hangs_costs_one_job(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "SILENCE", 1.0)
    journal = Journal(tmp_path, "run")
    with (tmp_path / "log").open("w") as log:
        code = gpu.supervise([sys.executable, "-c", WORKER], 30, log, journal)
    text = (tmp_path / "log").read_text()
    assert code == 0
    assert [int(found[1]) for found in gpu.STARTED.finditer(text)] == [0, 1, 2, 3, 4, 5]
    assert "the worker ended with code 3 in job 1; on to job 2" in text
    assert "the worker ended with code -9 in job 2; on to job 3" in text
    assert "stopped: it took too long" in text
    # The GPU may have been lost to the first of them by another's fault.
    assert journal.ended() == {"name, of 2", "name, of 3", "name, of 4"}
    assert journal.ended(again=True) == set()


def test_a_job_that_the_budget_cuts_off_has_not_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    monkeypatch.setattr(gpu, "LEAST", 0.1)
    journal = Journal(tmp_path, "run")
    code = "import time; print('job 0 of 1: name, about 0 s', flush=True); time.sleep(60)"
    with (tmp_path / "log").open("w") as log:
        assert gpu.supervise([sys.executable, "-c", code], 0.5, log, journal) == 0
    assert "stopped: it took too long" in (tmp_path / "log").read_text()
    assert journal.ended() == set()


def test_who_interrupts_leaves_no_worker_behind(monkeypatch, tmp_path):
    workers = []

    def interrupted(process, *_):
        workers.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "_repeat", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu.watch([sys.executable, "-c", "import time; time.sleep(60)"], 60, None)
    assert workers[0].wait(10) == -9


def test_a_worker_may_print_anything(tmp_path):
    code = r"import os; os.write(1, b'job 0 of 1: \xff, about 1 s\n')"
    with (tmp_path / "log").open("w") as log:
        assert gpu.watch([sys.executable, "-c", code], 60, log) == (0, (0, "\ufffd"))


def test_a_worker_that_cannot_start_is_not_repeated(tmp_path):
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", "import nothing_there"]
        code = gpu.supervise(command, 60, log, Journal(tmp_path, "run"))
    assert code == 1
    assert (tmp_path / "log").read_text().count("No module named") == 1


def test_nothing_is_started_without_time(tmp_path):
    with (tmp_path / "log").open("w") as log:
        assert gpu.supervise(["not a command"], gpu.LEAST, log, Journal(tmp_path, "run")) == 0


def test_a_worker_that_refuses_its_input_is_not_repeated(tmp_path):
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", "print('error: no'); raise SystemExit(2)"]
        assert gpu.supervise(command, 60, log, Journal(tmp_path, "run")) == 2


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
    monkeypatch.setattr("bench.speed.toolchain.shutil.which", lambda name: None)
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

    monkeypatch.setattr(driver.ctypes, "CDLL", lambda name: Driver())
    assert driver.gpu_name() == "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(Driver, "works", False)
    assert driver.gpu_name() is None
    monkeypatch.setattr(Driver, "works", True)
    monkeypatch.setattr(Driver, "gpus", [])
    assert driver.gpu_name() is None

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(driver.ctypes, "CDLL", absent)
    assert driver.gpu_name() is None


def test_facts_change_with_device_commit_and_code(monkeypatch, tmp_path):
    before = driver.facts("NVIDIA H100", "whole")
    assert before == driver.facts("NVIDIA H100", "whole")
    assert before != driver.facts("NVIDIA H200", "whole")
    monkeypatch.setenv("COMMIT", "another")
    assert before != driver.facts("NVIDIA H100", "whole")
    monkeypatch.delenv("COMMIT")
    monkeypatch.setattr(driver, "CODE", ("bench",))
    assert before != driver.facts("NVIDIA H100", "whole")


@pytest.mark.usefixtures("no_gpu")
def test_the_tiny_plan_fills_one_file_and_goes_on(monkeypatch, tmp_path, capsys):
    """The workers run here; the first one ends after two jobs, as if its time were over."""

    monkeypatch.setattr(gpu, "watch", lambda command, *_: (gpu.main(command[3:]), None))
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
    monkeypatch.setattr(gpu, "watch", watch)
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


@pytest.fixture(scope="module")
def gpu_plan():
    return plan.jobs(type("NoRows", (), {"rows": []}), "cuda")


def test_the_most_important_comes_first_and_fits(gpu_plan):
    names = [job.name for job in gpu_plan]
    assert names[:2] == ["smoke", "GPU tests"]
    assert names[2:4] == ["wrn28-10: dense captured", "wrn28-10: dense compiled captured"]
    ours = [name for name in names[4:19] if name.startswith("wrn28-10 0.")]
    assert [name.split()[3].strip(":") for name in ours] == ["64x64"] * 4 + ["32x32"] * 5 + [
        "auto"
    ] * 6
    assert [name.split(": ")[1] for name in ours if "0.8 uniform 32x32" in name] == [
        "auto rows fuse captured",
        "triton rows fuse captured",  # which `auto` would run dense
        "auto rows captured",
    ]
    layers = names[19:31]
    assert all(name.startswith("conv") and name.endswith("in rows") for name in layers)
    assert names[31:33] == ["wrn28-10: dense", "wrn28-10 0.8 uniform 64x64: auto rows"]
    assert plan.START_SECONDS + sum(job.seconds for job in gpu_plan[:31]) < 300
    assert gpu_plan[1].seconds < gpu_tests.LIMIT
    # Kernels are compiled for the first fused network of each kind of blocks.
    fused = [job for job in gpu_plan[4:19] if "auto rows fuse" in job.name]
    assert fused[0].seconds - fused[1].seconds >= 10
    assert fused[2].seconds > fused[3].seconds


def test_the_plan_has_everything_once_and_dense_first(gpu_plan):
    names = [job.name for job in gpu_plan]
    assert len(set(names)) == len(names)
    for number, name in enumerate(names):
        network = name.split()[0]
        if network in {other.name for other in plan.OTHERS} and "0." in name:
            assert f"{network}: dense captured" in names[:number]
            assert f"{network}: dense compiled captured" in names[:number]
    for part in (
        "erk auto",
        "mask-multiply",
        "grouped captured",
        "linear 4096x4096",
        "128x128",
        "triton rows captured",
        "0.95 uniform",
        "in channels_last",
        "auto rows compiled",
    ):
        assert any(part in name for name in names)


def test_what_supervises_needs_no_torch():
    code = "import sys, bench.gpu, bench.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
