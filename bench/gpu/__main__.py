"""Everything that matters on a GPU in one command, within a budget of seconds.

    python -m bench.gpu --budget 300 --out DIR      from the project's folder: nothing to install
    python -m bench.gpu --budget 300 --out DIR      again: goes on where the first call ended
    python -m bench.gpu --rehearse                  without a GPU: see rehearsal.py

Rows go to one CSV, what is printed to one log, the names of jobs that have ended to a journal, and
tracebacks, if there are any, to a file of their own, all in DIR. The measurements run in a process
of their own: where one hangs, or leaves the GPU unusable, the next one starts in a fresh process.
Tables and figures are made later:
`python -m bench.report --reports DIR --print`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from bench.gpu.driver import facts, gpu_name
from bench.gpu.rehearsal import begin, rehearse
from bench.report.records import REPORTS, Records, now, read_all
from bench.report.tables import summary
from bench.speed.journal import DEVICE_LOST, FAILED, Journal
from bench.speed.toolchain import check_tools
from sparse_engine.errors import InputError

ROOT = Path(__file__).parents[2]
REPORT = "all"
# A worker that has not ended so many seconds after its budget is stopped.
GRACE = 20.0
# Starting a process and its GPU takes some; below this nothing is started.
LEAST = 15.0
SILENCE = 120.0  # of a job that should take less
STARTED = re.compile(r"job (\d+) of \d+: (.*), about (\d+) s")
BAD_INPUT = 2  # exit code
NO_GPU = (
    "no CUDA GPU was found; `python -m bench.gpu --rehearse` goes through the plan without one, "
    "`make bench-cpu` measures what a CPU has"
)


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
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=worker_environment(),
        start_new_session=True,
    ) as process:
        try:
            reached = _repeat(process, limit, log)
        finally:
            # With the processes that it may have started, which hold its output open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, reached


def worker_environment() -> dict[str, str]:
    """Return the environment of a worker: the project's folders are on its path."""
    paths = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _repeat(process: subprocess.Popen[str], limit: float, log: IO[str]) -> tuple[int, str] | None:
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
            reached = int(found[1]), found[2]
            job_end = time.monotonic() + max(SILENCE, 4 * float(found[3]))


def work(options: argparse.Namespace) -> None:
    """Run the jobs from a number on, but those that an earlier call has done.

    Raises:
        InputError: this torch has no GPU.
    """
    began = time.monotonic()  # before the imports, which count too
    rehearsal = begin(options) if options.rehearse else None
    from bench.gpu.plan import jobs
    from bench.speed.jobs import Budget, run_jobs

    device, records = prepared(options)
    journal, plan = Journal(options.out, options.run), jobs(records, device, options.tiny)
    ended = journal.ended(options.again)
    left = [number for number, job in enumerate(plan) if job.name not in ended]
    if ended and not options.first:
        where = f"at job {left[0]} of {len(plan)}" if left else "which has done all of its jobs"
        print(f"continuing run {options.run} {where}", flush=True)
    plan = rehearsal.jobs(plan) if rehearsal else plan
    budget = Budget(options.budget - (time.monotonic() - began))
    run_jobs(plan, budget, options.first, journal, ended)


def prepared(options: argparse.Namespace) -> tuple[str, Records]:
    """Return a worker's device and where its rows go; tracebacks go to a file beside them.

    Raises:
        InputError: this torch has no GPU.
    """
    import torch

    from bench.report.records import opened

    if not (options.tiny or torch.cuda.is_available()):
        raise InputError(f"torch {torch.__version__} cannot use the GPU; install one built for it")
    failures = logging.FileHandler(options.out / "bench-gpu.failures", delay=True)
    logger = logging.getLogger("bench.speed.jobs")
    logger.addHandler(failures)
    logger.setLevel(logging.INFO)
    return opened(options.out, REPORT, run=options.run)


def say(text: str, log: IO[str]) -> None:
    """Print a line here and to the log."""
    print(text, flush=True)
    print(text, file=log, flush=True)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=300, help="seconds, start to table")
    parser.add_argument("--out", type=Path, help="folder of the CSV and the log (bench/reports)")
    parser.add_argument("--again", action="store_true", help="repeat jobs that have failed, too")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check the harness")
    parser.add_argument(
        "--rehearse",
        nargs="?",
        const="sm_90",
        metavar="TARGET",
        help="without a GPU: compile and launch all of it for one that is not there (sm_90)",
    )
    parser.add_argument("--fault", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def checked_device(options: argparse.Namespace) -> str:
    """Return the name of what is measured, after what can be wrong with the input.

    Raises:
        InputError: there is no GPU, Triton cannot use it, or the folder is none or has other CSVs.
    """
    device = gpu_name()
    if device is None and not options.tiny:
        raise InputError(NO_GPU)
    if device is not None:
        check_tools()
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out must be a folder, and '{options.out}' is a file")
    read_all(options.out)
    return device or "CPU"


def worker_command(options: argparse.Namespace) -> list[str]:
    """Return a worker's command, without its budget, run and first job."""
    flags = ["--tiny"] * options.tiny + ["--again"] * options.again
    if options.rehearse:
        flags += ["--rehearse", options.rehearse, *(f"--fault={fault}" for fault in options.fault)]
    return [sys.executable, "-m", "bench.gpu", "--worker", *flags]


def main(arguments: Sequence[str] | None = None) -> int:
    """Supervise workers and print the table, or be a worker; return the exit code."""
    options = parsed(arguments)
    try:
        if options.worker:
            work(options)
            return 0
        if options.rehearse:
            return rehearse(options, supervise, worker_command(options))
        options.out = options.out or REPORTS
        device = checked_device(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    options.out.mkdir(parents=True, exist_ok=True)
    of_run = facts(device, "tiny" if options.tiny else "whole")
    journal = Journal.begun(options.out, of_run, options.run or now())
    with (options.out / "bench-gpu.log").open("a", encoding="utf-8") as log:
        command = [*worker_command(options), "--out", str(options.out)]
        code = supervise(command, options.budget, log, journal)
        rows = _rows(options.out, journal.run)
        say(f"\n{summary(rows)}" if rows else "no rows", log)
    return code or int(not rows)


def _rows(folder: Path, run: str) -> list[dict[str, Any]]:
    return [row for row in read_all(folder) if row["run"] == run]


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for text in stream:
        lines.put(text.rstrip("\n"))
    lines.put(None)


if __name__ == "__main__":
    sys.exit(main())
