"""The runs of a study: each a training of its own process, and a row in the study's CSV.

A run that has a row is not made again, one that was stopped is resumed from its checkpoint.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report.records import append_row, environment, now, read
from bench.study.grid import Run, Study

TRAIN = (sys.executable, "-m", "sparse_engine.train")
# settings: all that was said of the run, JSON; member_accuracy: mean; seconds_per_epoch: of
# training alone, on a machine that may do other things; peak_mb: tensors on a GPU, the whole
# process on a CPU; run: when it ended, UTC.
COLUMNS = (
    "key", "model", "dataset", "method", "topology", "sparsity", "block", "taps", "distribution",
    "seed", "settings", "accuracy", "nll", "ece", "brier", "member_accuracy", "train_flops",
    "train_flops_ratio", "test_flops_ratio", "parameters", "bytes", "epochs", "train_seconds",
    "seconds_per_epoch", "peak_mb", "backend", "kernel_flops_share", "dtype", "device", "driver",
    "threads", "torch", "triton", "commit", "run",
)  # fmt: skip


class Table:
    """The CSV of a study: a row for each run that has ended well, by key."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            InputError: the file has other columns.
        """
        self.path, self._lock = path, threading.Lock()
        self.rows = {row["key"]: row for row in read(path, COLUMNS, "--table")}

    def add(self, values: Mapping[str, Any]) -> None:
        """Append a row."""
        with self._lock:
            row = append_row(self.path, COLUMNS, values)
            self.rows[row["key"]] = row


@dataclass
class Runner:
    """Makes the runs of a study that have no row yet.

    out: a folder for each run; data_dir: of the data set; threads: of each process; keep: leave
    checkpoints and tickets of finished runs.
    """

    study: Study
    table: Table
    out: Path
    data_dir: str | None
    device: str = "auto"
    threads: int = 1
    keep: bool = False
    failed: list[str] = field(default_factory=list)
    _children: list[subprocess.Popen[str]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self, processes: int, seconds: float | None = None) -> None:
        """Make runs, some at a time, until there is none or time is over.

        Processes that are at work then write a checkpoint and stop; so they do at Ctrl-C.
        """
        waiting = self._waiting()
        print(f"{len(waiting)} of {len(self.study.runs())} runs to make", flush=True)
        timer = threading.Timer(seconds or threading.TIMEOUT_MAX, self.stop)
        timer.daemon = True
        timer.start()
        try:
            with ThreadPoolExecutor(processes) as pool:
                try:
                    list(pool.map(self._make, waiting))
                except BaseException:
                    self.stop()
                    raise
        finally:
            timer.cancel()

    def stop(self) -> None:
        """Begin no other run, and let those at work stop after a checkpoint."""
        self._over.set()
        for child in list(self._children):
            child.send_signal(signal.SIGTERM)

    def _waiting(self) -> list[Run]:
        return [run for run in self.study.runs() if run.key not in self.table.rows]

    def _make(self, run: Run) -> None:
        if self._over.is_set():
            return
        folder, began = self.out / run.key, time.monotonic()
        code, words = self._train(run, folder)
        if code == 0:
            result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            self.table.add(self._row(run, result))
            if not self.keep:
                shutil.rmtree(folder)
            words = f"accuracy {result['accuracy']:.4f}"
        elif not self._over.is_set():
            self.failed.append(run.key)
        spent, left = time.monotonic() - began, len(self._waiting())
        print(f"{run}: {words}, {spent:.0f} s, {left} left", flush=True)

    def _train(self, run: Run, folder: Path) -> tuple[int, str]:
        """Train in a process of its own; return its exit code and last words."""
        log = self.out / f"{run.key}.log"
        if (folder / "metrics.json").exists():
            return 0, ""
        arguments = ["--resume", str(folder)]
        if not (folder / "last.pt").exists():
            shutil.rmtree(folder, ignore_errors=True)
            self.out.mkdir(parents=True, exist_ok=True)
            config = self.out / f"{run.key}.json"
            config.write_text(json.dumps(run.settings, indent=1), encoding="utf-8")
            arguments = ["--config", str(config), "--out", str(folder), "--device", self.device]
            if self.data_dir:
                arguments += ["--data-dir", self.data_dir]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with log.open("w", encoding="utf-8") as file:
            child = subprocess.Popen(
                [*TRAIN, *arguments], stdout=file, stderr=file, text=True, env=environment
            )
            self._children.append(child)
            code = child.wait()
            self._children.remove(child)
        lines = log.read_text(encoding="utf-8").strip().splitlines()
        return code, f"exit {code}, {lines[-1][:300]}" if lines else f"exit {code}"

    def _row(self, run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
        config = json.loads((self.out / run.key / "config.json").read_text(encoding="utf-8"))
        members = result["member_accuracy"]
        return {
            **config,
            **result,
            **environment("cpu" if result["device"] == "cpu" else "cuda"),
            "key": run.key,
            "settings": json.dumps(run.settings, sort_keys=True),
            "member_accuracy": sum(members) / len(members),
            "seconds_per_epoch": result["train_seconds"] / result["epochs"],
            "peak_mb": result["peak_memory_bytes"] / 1e6,
            "threads": self.threads,
            "run": now(),
        }
