"""The whole plan of bench.gpu on a machine without a GPU: what would be compiled and launched.

    python -m bench.gpu --rehearse                  for sm_90
    python -m bench.gpu --rehearse sm_120 --tiny    another target, a few jobs

Nothing is computed or measured: tensors of a CUDA device that is not there have shapes only, every
kernel that a job launches is compiled for the target, and streams, events, graphs and memory are
stand-ins (tests/helpers/fake_gpu). torch.compile runs a network as it is, what other libraries
bring along is left out, and of the GPU's tests it is only seen that they can be collected.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from bench.gpu.supervisor import supervise
from bench.report.records import REHEARSAL, now, read_all
from bench.speed.journal import Journal
from bench.speed.machine import ROOT, facts, gpu_name
from sparse_engine.errors import InputError

HELPERS = ROOT / "tests" / "helpers"
TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
BUDGET = 3600.0  # seconds; a rehearsal leaves nothing out
JOB_SECONDS = 30.0  # that a job may take; a quarter of what it is stopped after
NOTES = "rehearsal.jsonl"  # a line a job
PLANNED = re.compile(r"^job \d+ of (\d+): ", re.M)
NO_ROW = re.compile(r"^(?:no row: (.*)|the worker ended with code .* in job (\d+);.*)$", re.M)


def rehearse(options: argparse.Namespace, command: list[str]) -> int:
    """Go through the plan and print what came of it as JSON; return the exit code.

    Args:
        options: of the command line; without --out everything goes to a temporary folder.
        command: of a worker, without its folder.

    Raises:
        InputError: an unknown target, no Triton, or a checkout without tests/.
    """
    target = options.rehearse
    if target not in TARGETS:
        raise InputError(f"--rehearse knows no '{target}'; choose from {', '.join(TARGETS)}")
    if importlib.util.find_spec("triton") is None:
        raise InputError("--rehearse compiles kernels and needs triton, which is not here")
    if not HELPERS.is_dir():
        raise InputError(f"--rehearse needs the project's folder 'tests'; '{HELPERS}' is not there")
    if name := gpu_name():
        print(f"there is a GPU here ({name}); this compiles for {target} only", flush=True)
    began, run = time.monotonic(), now()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal.begun(folder, facts(REHEARSAL, f"{target} {run}"), run)
        path = folder / "bench-gpu.log"
        with path.open("w", encoding="utf-8") as log:
            code = supervise([*command, "--out", str(folder)], BUDGET, log, journal)
        summary = _summary(folder, path.read_text(encoding="utf-8"), run)
    if code and not summary["failed"]:
        summary |= {"failed": 1, "failures": [f"the worker ended with code {code}"]}
    summary["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps({"target": target, **summary}), flush=True)
    return int(bool(summary["failed"]))


def begin(options: argparse.Namespace) -> Rehearsal:
    """Make this process, a worker, one with a GPU that is not there; before torch is used."""
    sys.path.insert(0, str(HELPERS))
    import fake_gpu

    # Compilers are other processes, a core each.
    gpu = fake_gpu.install(int(options.rehearse.removeprefix("sm_")), os.cpu_count() or 1)
    import torch

    from bench import kernels
    from bench.gpu import gpu_tests, plan
    from bench.report import records
    from bench.speed import measure

    torch.compile = lambda model=None, **_: model if model is not None else lambda given: given
    measure.joules = lambda: None
    kernels.peers = lambda _: []
    measure.ROUNDS = (1, 1)
    records.device_name = lambda _: REHEARSAL
    plan.run_tests = lambda: gpu_tests.run_tests(collect=True)
    return Rehearsal(gpu, options.out / NOTES, options.fault, options.tiny)


class Rehearsal:
    """What a worker does around each job: waits for the compilers, notes what they did."""

    def __init__(self, gpu: Any, notes: Path, faults: Sequence[str], tiny: bool) -> None:
        self.gpu, self.notes = gpu, notes
        self.seconds = 1.0 if tiny else JOB_SECONDS
        self.faults = {int(job): kind for kind, job in (fault.split(":") for fault in faults)}

    def jobs(self, jobs: Sequence[Any]) -> list[Any]:
        """Return the plan's jobs as they are rehearsed."""
        return [
            replace(job, seconds=self.seconds, run=partial(self._run, number, job))
            for number, job in enumerate(jobs)
        ]

    def _run(self, number: int, job: Any) -> None:
        compiler, fault = self.gpu.launches.compiler, self.faults.get(number)
        before = set(compiler.compiled)
        try:
            with contextlib.redirect_stdout(_WithoutTimes()), _fault(fault, self.gpu):
                job.run()
            self.gpu.launches.finish()
        finally:
            compiled = [kernel for key, kernel in compiler.compiled.items() if key not in before]
            seconds = sum(kernel.seconds for kernel in compiled)
            note = {"job": job.name, "kernels": len(compiled), "seconds": seconds}
            with self.notes.open("a", encoding="utf-8") as file:
                file.write(json.dumps(note) + "\n")


class _WithoutTimes(io.TextIOBase):
    """Prints lines but those with milliseconds, for none were measured."""

    def __init__(self) -> None:
        self._out, self._begun = sys.stdout, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if " ms" not in line:
                print(line, file=self._out, flush=True)
        return len(text)


def _summary(folder: Path, log: str, run: str) -> dict[str, Any]:
    """Return what the workers have left, and which jobs failed."""
    path = folder / NOTES
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    notes = [json.loads(line) for line in lines]
    failures = [lost[1] or f"job {lost[2]} ended its worker" for lost in NO_ROW.finditer(log)]
    planned = PLANNED.search(log)
    return {
        "jobs": int(planned[1]) if planned else 0,
        "rows_planned": sum(row["run"] == run for row in read_all(folder)),
        "kernels_compiled": sum(note["kernels"] for note in notes),
        "compile_seconds": round(sum(note["seconds"] for note in notes), 1),
        "failed": len(failures),
        "failures": failures,
    }


def _fault(fault: str | None, gpu: Any) -> contextlib.AbstractContextManager[Any]:
    """Let something go wrong inside: "compile", "capture", "memory", "kill" or "hang"."""
    import torch

    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(BUDGET)
    if fault is None:
        return contextlib.nullcontext()
    where, name = (torch.cuda, "graph") if fault == "capture" else (gpu.launches, "launch")
    kind = torch.cuda.OutOfMemoryError if fault == "memory" else RuntimeError
    error = kind(f"{fault} fails in a rehearsal")
    return mock.patch.object(where, name, side_effect=error)
