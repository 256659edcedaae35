"""Faults of the world around a run: signals, kills, full disks, a second process, a strange clock.

The processes here are real ones.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from resumed_runs import assert_equal_runs, train, train_and_kill

from sparse_engine.errors import InputError, RunFailure, Stopped
from sparse_engine.runs.files import FolderLock, load_file
from sparse_engine.train import main
from sparse_engine.training.trainer import Trainer

FLAGS = ["--model", "mlp", "--block", "8x8", "--batch-size", "256", "--device", "cpu"]
LONG = ["--method", "rigl", "--epochs", "4000", "--checkpoint-every", "3"]
METHODS = {
    "edst": ["--method", "edst", "--epochs", "20"],
    "dst-ensemble": ["--method", "dst-ensemble", "--epochs", "21"],
    "snfs": ["--method", "snfs", "--epochs", "20"],
    "granet": ["--method", "granet", "--epochs", "20"],
    "sup-tickets": ["--method", "sup-tickets", "--cycles", "2", "--epochs", "24"],
    "lottery": ["--method", "lottery", "--rounds", "2", "--epochs", "20", "--sparsity", "0.6"],
    "ltr": ["--method", "ltr", "--rounds", "2", "--members", "2", "--epochs", "24"],
    "pf": ["--method", "pf", "--members", "2", "--epochs", "20"],
    "snapshot": ["--method", "snapshot", "--epochs", "20"],
    "fge": ["--method", "fge", "--epochs", "20"],
    "mc-dropout": ["--method", "mc-dropout", "--dropout", "0.2", "--epochs", "20"],
    "batch-ensemble": ["--method", "batch-ensemble", "--epochs", "20"],
    "mimo": ["--method", "mimo", "--epochs", "20"],
    "treenet": ["--method", "treenet", "--epochs", "20"],
    "deep-ensemble": ["--method", "deep-ensemble", "--epochs", "21"],
    "static": ["--method", "static", "--epochs", "20", "--select", "validation"],
    "set": ["--method", "set", "--epochs", "20", "--dropout", "0.2"],
    "rigl": ["--method", "rigl", "--epochs", "20", "--dtype", "bf16"],
}
pytestmark = pytest.mark.usefixtures("own_folder")


@contextmanager
def started(*flags, **options):
    """Start a training process, and kill it in the end."""
    command = [sys.executable, "-m", "sparse_engine.train", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, **pipes, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(path, process):
    while not Path(path).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def last_line(text):
    return text.strip().splitlines()[-1]


def test_a_signal_stops_a_run_with_a_checkpoint():
    with started(*FLAGS, *LONG, "--out", "run") as process:
        wait_for("run/last.pt", process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    step = load_file(Path("run/last.pt"))["progress"]["step"]
    assert last_line(err) == f"stopped: at step {step}; continue with --resume run"


@pytest.mark.parametrize("step", [7, 10])
def test_an_interrupted_run_continues_where_it_was(step, monkeypatch):
    train_step = Trainer._train_step

    def interrupt(self, phase):
        train_step(self, phase)
        if self.progress.step + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)

    flags = [*FLAGS, "--method", "rigl", "--epochs", "4"]
    main([*flags, "--out", "whole"])
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupt)
        with pytest.raises(Stopped, match=f"at step {step}; continue with --resume run"):
            main([*flags, "--out", "run"])
    assert signal.getsignal(signal.SIGINT) is handler
    main(["--resume", "run"])
    assert_equal_runs("whole", "run")


def kill_and_resume(flags, delays):
    """Kill a run after each of some seconds, resume it at last; return how often it was killed."""
    kills = 0
    for delay in delays:
        resumes = Path("run/config.json").exists()
        with started(*(["--resume", "run"] if resumes else [*flags, "--out", "run"])) as process:
            wait_for("run/config.json", process)
            time.sleep(delay)
        kills += process.returncode == -signal.SIGKILL
    main(["--resume", "run"])
    return kills


def test_a_killed_run_continues_where_it_was():
    flags = [*FLAGS, "--method", "rigl", "--epochs", "40", "--checkpoint-every", "3"]
    assert kill_and_resume(flags, [0.3]) == 1
    main([*flags, "--out", "whole"])
    assert_equal_runs("whole", "run")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_random_moments_ends_as_one_never_killed(method):
    flags = [*FLAGS, *METHODS[method], "--checkpoint-every", "2"]
    main([*flags, "--out", "whole"])
    draw = random.Random(method)
    kills = kill_and_resume(flags, [draw.uniform(1.5, 4.5) for _ in range(3)])
    print(f"{method}: {kills} kills survived")
    assert_equal_runs("whole", "run")


@contextmanager
def full_disk(size):
    """Let no file become larger than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_costs_the_steps_since_the_last_checkpoint(monkeypatch):
    flags = ["--method", "rigl", "--epochs", "4"]
    train("whole", *flags)
    train_and_kill(monkeypatch, 2, *flags)
    before = Path("out/last.pt").read_bytes()
    with (
        full_disk(len(before) // 2),
        pytest.raises(
            RunFailure, match=r"'out/last.pt' cannot be written: .*; what was written bef"
        ),
    ):
        main(["--resume", "out"])
    assert Path("out/last.pt").read_bytes() == before
    assert not list(Path("out").glob("*.part"))
    main(["--resume", "out"])
    assert_equal_runs("whole", "out")


def test_a_second_process_in_a_folder_is_refused():
    code = (
        "import sys; from pathlib import Path;"
        "from sparse_engine.runs.files import FolderLock;"
        "lock = FolderLock(Path('run')); lock.take(); print('locked', flush=True); sys.stdin.read()"
    )
    Path("run").mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"'run' is in use by process {process.pid}; wait"):
            main([*FLAGS, "--method", "static", "--out", "run"])
        process.kill()
    main([*FLAGS, "--method", "static", "--epochs", "1", "--out", "run"])


# Newer Pythons warn of any fork beside threads.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_was_forked_does_not_hold_the_lock():
    """A loader's processes, after their parent was killed, or while an error keeps them alive."""
    Path("run").mkdir()
    lock = FolderLock(Path("run"))
    (ready, tell), (wait, over) = os.pipe(), os.pipe()

    def hold():
        lock.take()
        if os.fork() == 0:
            os.write(tell, b"x")
            os.read(wait, 1)
            os._exit(0)
        os.read(ready, 1)

    holder = os.fork()
    if not holder:
        hold()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(holder, 0)
    hold()
    lock.release()
    lock.take()
    lock.release()
    os.write(over, b"xx")
    os.wait()


def test_a_folder_is_free_after_its_run():
    Path("run").mkdir()
    lock = FolderLock(Path("run"))
    lock.take()
    with pytest.raises(InputError, match="is in use by process"):
        FolderLock(Path("run")).take()
    lock.release()
    lock.take()
    lock.release()
