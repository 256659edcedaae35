"""Everything that matters on a GPU in one command, within a budget of seconds.

    python -m bench.gpu --budget 540 --out DIR      from the project's folder: nothing to install

Rows go to one CSV, what is printed to one log, both in DIR. The measurements run in a process of
their own: where one hangs, or leaves the GPU unusable, the next one starts in a fresh process.
Tables and figures are made later: `python -m bench.report --reports DIR --print`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from bench.records import REPORTS, now, read_all
from bench.tables import summary

ROOT = Path(__file__).parents[1]
REPORT = "all"
# A worker that has not ended so many seconds after its budget is stopped.
GRACE = 20.0
# Starting a process and its GPU takes some; below this nothing is started.
LEAST = 15.0
SILENCE = 120.0  # of a job that should take less
STARTED = re.compile(r"job (\d+) of \d+: .*, about (\d+) s")


def supervise(command: list[str], budget: float, log: IO[str], run: str) -> int:
    """Run workers until one has gone through all jobs or the time is over.

    Args:
        command: of a worker; --budget, --run and --first are added.
        budget: seconds for all of them.
        log: gets what they print.
        run: what the rows of all of them call it.

    Returns:
        The last worker's exit code; 0 if it was stopped at the end of the budget.
    """
    end, first = time.monotonic() + budget, 0
    while (left := end - time.monotonic()) > LEAST:
        flags = ["--budget", f"{left:.0f}", "--run", run, "--first", str(first)]
        code, reached = watch([*command, *flags], left + GRACE, log)
        if code == 0 or reached is None:
            return code
        first = reached + 1
        say(f"the worker ended with code {code} in job {reached}; on to job {first}", log)
    return 0


def watch(command: list[str], limit: float, log: IO[str]) -> tuple[int, int | None]:
    """Run a worker, repeat what it prints; return its exit code and the last job it began.

    It is stopped after `limit` seconds, or when a job takes four times as long as announced.
    """
    paths = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        reached = _repeat(process, limit, log)
        # With the processes that it may have started, which hold its output open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, reached


def _repeat(process: subprocess.Popen[str], limit: float, log: IO[str]) -> int | None:
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    end = job_end = time.monotonic() + limit
    reached = None
    while True:
        try:
            text = lines.get(timeout=1.0)
        except queue.Empty:
            if process.poll() is not None:
                return reached
            if time.monotonic() > min(end, job_end):
                process.kill()
                say("stopped: it took too long", log)
                return reached
            continue
        if text is None:
            return reached
        say(text, log)
        if found := STARTED.match(text):
            reached = int(found[1])
            job_end = time.monotonic() + max(SILENCE, 4 * float(found[2]))


def work(options: argparse.Namespace) -> None:
    """Run the jobs from a number on."""
    began = time.monotonic()  # before the imports, which count too
    from bench.jobs import Budget, run_jobs
    from bench.plan import jobs
    from bench.records import opened

    budget = Budget(options.budget - (time.monotonic() - began))
    device, records = opened(options.out, REPORT, run=options.run)
    run_jobs(jobs(records, device, options.tiny), budget, options.first)


def say(text: str, log: IO[str]) -> None:
    """Print a line here and to the log."""
    print(text, flush=True)
    print(text, file=log, flush=True)


def main() -> int:
    """Supervise workers and print the table, or be a worker."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=540, help="seconds, start to table")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the CSV and the log")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check the harness")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run", default=now(), help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bench.gpu", "--worker", "--out", str(options.out)]
    command += ["--tiny"] * options.tiny
    with (options.out / "bench-gpu.log").open("a", encoding="utf-8") as log:
        code = supervise(command, options.budget, log, options.run)
        rows = [row for row in read_all(options.out) if row["run"] == options.run]
        say(f"\n{summary(rows)}" if rows else "no rows", log)
    return code or int(not rows)


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for text in stream:
        lines.put(text.rstrip("\n"))
    lines.put(None)


if __name__ == "__main__":
    sys.exit(main())
