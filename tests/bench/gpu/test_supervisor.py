"""Workers that die or hang cost one job; a budget holds."""

import os
import sys

import pytest

from bench.gpu import supervisor
from bench.speed.journal import Journal

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


def test_a_worker_that_dies_or_hangs_costs_one_job(monkeypatch, tmp_path):
    monkeypatch.setattr(supervisor, "SILENCE", 1.0)
    journal = Journal(tmp_path, "run")
    with (tmp_path / "log").open("w") as log:
        code = supervisor.supervise([sys.executable, "-c", WORKER], 30, log, journal)
    text = (tmp_path / "log").read_text()
    assert code == 0
    assert [int(found[1]) for found in supervisor.STARTED.finditer(text)] == [0, 1, 2, 3, 4, 5]
    assert "the worker ended with code 3 in job 1; on to job 2" in text
    assert "the worker ended with code -9 in job 2; on to job 3" in text
    assert "stopped: it took too long" in text
    # The GPU may have been lost to the first of them by another's fault.
    assert journal.ended() == {"name, of 2", "name, of 3", "name, of 4"}
    assert journal.ended(again=True) == set()


def test_a_job_that_the_budget_cuts_off_has_not_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(supervisor, "GRACE", 0.0)
    monkeypatch.setattr(supervisor, "LEAST", 0.1)
    journal = Journal(tmp_path, "run")
    code = "import time; print('job 0 of 1: name, about 0 s', flush=True); time.sleep(60)"
    with (tmp_path / "log").open("w") as log:
        assert supervisor.supervise([sys.executable, "-c", code], 0.5, log, journal) == 0
    assert "stopped: it took too long" in (tmp_path / "log").read_text()
    assert journal.ended() == set()


def test_who_interrupts_leaves_no_worker_behind(monkeypatch, tmp_path):
    workers = []

    def interrupted(text, log):
        workers.append(int(text))
        raise KeyboardInterrupt

    monkeypatch.setattr(supervisor, "say", interrupted)
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        supervisor.watch([sys.executable, "-c", code], 60, None)
    with pytest.raises(ProcessLookupError):
        os.kill(workers[0], 0)


def test_a_worker_may_print_anything(tmp_path):
    code = r"import os; os.write(1, b'job 0 of 1: \xff, about 1 s\n')"
    with (tmp_path / "log").open("w") as log:
        assert supervisor.watch([sys.executable, "-c", code], 60, log) == (0, (0, "\ufffd"))


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("import nothing_there", 1, "No module named"),
        ("print('error: no'); raise SystemExit(2)", supervisor.BAD_INPUT, "error: no"),
    ],
)
def test_a_worker_that_cannot_begin_is_not_repeated(program, code, words, tmp_path):
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", program]
        assert supervisor.supervise(command, 60, log, Journal(tmp_path, "run")) == code
    assert (tmp_path / "log").read_text().count(words) == 1


def test_nothing_is_started_without_time(tmp_path):
    journal = Journal(tmp_path, "run")
    with (tmp_path / "log").open("w") as log:
        assert supervisor.supervise(["not a command"], supervisor.LEAST, log, journal) == 0
