"""Workers in processes of their own: one that dies, hangs or takes too long costs one job."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from typing import IO

from bench.speed.journal import DEVICE_LOST, FAILED, Journal
from bench.speed.machine import ROOT

# A worker that has not ended so many seconds after its budget is stopped.
GRACE = 20.0
# Starting a process and its GPU takes some; below this nothing is started.
LEAST = 15.0
SILENCE = 120.0  # of a job that should take less
STARTED = re.compile(r"job (\d+) of \d+: (.*), about (\d+) s")
BAD_INPUT = 2  # exit code


def supervise(command: list[str], budget: float, log: IO[str], journal: Journal) -> int:
    """Run workers until one has gone through all jobs or the time is over.

    A job that kills its worker or hangs has failed; one that loses the GPU or is cut off at the end
    has not ended, for the next call.

    Args:
        command: of a worker; --budget, --run and --first are added.
        budget: seconds for all of them.
        log: gets what they print.
        journal: of the run.

    Returns:
        The last worker's exit code; 0 if it was stopped at the end of the budget.
    """
    end, first = time.monotonic() + budget, 0
    while (left := end - time.monotonic()) > LEAST:
        flags = ["--budget", f"{left:.0f}", "--run", journal.run, "--first", str(first)]
        code, reached = watch([*command, *flags], left + GRACE, log)
        if code in (0, BAD_INPUT) or reached is None:
            return abs(code)
        number, name = reached
        if code != DEVICE_LOST and time.monotonic() < end:
            journal.note(name, FAILED)
        first = number + 1
        say(f"the worker ended with code {code} in job {number}; on to job {first}", log)
    return 0


def watch(command: list[str], limit: float, log: IO[str]) -> tuple[int, tuple[int, str] | None]:
    """Run a worker, repeat what it prints; return its exit code and the last job it began.

    It is stopped after `limit` seconds, or when a job takes four times as long as announced.
    """
    end = job_end = time.monotonic() + limit
    reached = None
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=worker_environment(),
        start_new_session=True,
    ) as process:

        def guard() -> None:
            while process.poll() is None and time.monotonic() < min(end, job_end):
                time.sleep(0.2)
            if process.poll() is None:
                say("stopped: it took too long", log)
            _kill(process)

        threading.Thread(target=guard, daemon=True).start()
        try:
            for text in process.stdout or ():
                say(text.rstrip("\n"), log)
                if job := STARTED.match(text):
                    reached = int(job[1]), job[2]
                    job_end = time.monotonic() + max(SILENCE, 4 * float(job[3]))
        finally:
            _kill(process)
    return process.returncode, reached


def worker_environment() -> dict[str, str]:
    """Return the environment of a worker: the project's folders are on its path."""
    paths = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def say(text: str, log: IO[str]) -> None:
    """Print a line here and to the log."""
    print(text, flush=True)
    print(text, file=log, flush=True)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a worker with the processes that it may have started, which hold its output open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
