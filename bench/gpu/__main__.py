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

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from bench.gpu.rehearsal import begin, rehearse
from bench.gpu.supervisor import BAD_INPUT, say, supervise
from bench.report.records import REPORTS, now, read_all
from bench.report.tables import summary
from bench.speed.journal import Journal
from bench.speed.machine import check_tools, facts, gpu_name
from sparse_engine.config.flags import run_command, user_path
from sparse_engine.errors import InputError

REPORT = "all"
NO_GPU = (
    "no CUDA GPU was found; `python -m bench.gpu --rehearse` goes through the plan without one, "
    "`make bench-cpu` measures what a CPU has"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Supervise workers and print the table, or be a worker; return the exit code."""
    options = parsed(arguments)
    try:
        if options.worker:
            work(options)
            return 0
        if options.rehearse:
            return rehearse(options, worker_command(options))
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
        rows = [row for row in read_all(options.out) if row["run"] == journal.run]
        say(f"\n{summary(rows)}" if rows else "no rows", log)
    return code or int(not rows)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=300, help="seconds, start to table")
    parser.add_argument(
        "--out", type=user_path, help="folder of the CSV and the log (bench/reports)"
    )
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


def work(options: argparse.Namespace) -> None:
    """Run the jobs from a number on, but those that an earlier call has done.

    Tracebacks go to a file beside the CSV.

    Raises:
        InputError: this torch has no GPU.
    """
    began = time.monotonic()  # before the imports, which count too
    rehearsal = begin(options) if options.rehearse else None
    import torch

    from bench.gpu.plan import jobs
    from bench.report.records import opened
    from bench.speed.jobs import Budget, run_jobs

    if not (options.tiny or torch.cuda.is_available()):
        raise InputError(f"torch {torch.__version__} cannot use the GPU; install one built for it")
    logger = logging.getLogger("bench.speed.jobs")
    logger.addHandler(logging.FileHandler(options.out / "bench-gpu.failures", delay=True))
    logger.setLevel(logging.INFO)
    device, records = opened(options.out, REPORT, run=options.run)
    journal, plan = Journal(options.out, options.run), jobs(records, device, options.tiny)
    ended = journal.ended(options.again)
    left = [number for number, job in enumerate(plan) if job.name not in ended]
    if ended and not options.first:
        where = f"at job {left[0]} of {len(plan)}" if left else "which has done all of its jobs"
        print(f"continuing run {options.run} {where}", flush=True)
    plan = rehearsal.jobs(plan) if rehearsal else plan
    budget = Budget(options.budget - (time.monotonic() - began))
    run_jobs(plan, budget, options.first, journal, ended)


if __name__ == "__main__":
    run_command(main)
