"""The runs of a study: each a training of its own process, and a row in the study's CSV.

A run that has a row is not made again, one that was stopped is resumed from its checkpoint.
"""

import json
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report.records import append_row, environment, now, read
from bench.study.grid import Run, Study
from bench.study.processes import EVALUATE, TRAIN, Processes
from sparse_engine.config.values import read_json

# settings: all that was said of the run, JSON; member_accuracy: mean; disagreement: mean share of
# images that two members class differently; corrupted_accuracy: mean over families and severities;
# foreign_auroc: of the entropy, by which the study's foreign images are told from its own;
# seconds_per_epoch: of training alone, on a machine that may do other things; cpu_seconds: of the
# processes that trained, starts and evaluations included; peak_mb: tensors on a GPU, the whole
# process on a CPU; run: when it ended, UTC.
COLUMNS = (
    "key", "model", "dataset", "method", "topology", "sparsity", "block", "taps", "distribution",
    "seed", "settings", "accuracy", "nll", "ece", "brier", "member_accuracy", "members",
    "disagreement", "corrupted_accuracy", "foreign_auroc", "train_flops", "train_flops_ratio",
    "test_flops_ratio", "parameters", "bytes", "epochs", "train_seconds", "seconds_per_epoch",
    "cpu_seconds", "peak_mb", "backend", "kernel_flops_share", "dtype", "device", "driver",
    "threads", "torch", "triton", "commit", "run",
)  # fmt: skip
# Files in a run's folder that only a study has.
CPU_SECONDS, EVALUATION = "cpu-seconds.txt", "evaluation.json"


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
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Begin without a process."""
        self._processes = Processes(self.threads)

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
        self._processes.stop()

    def _waiting(self) -> list[Run]:
        return [run for run in self.study.runs() if run.key not in self.table.rows]

    def _make(self, run: Run) -> None:
        if self._over.is_set():
            return
        folder, began = self.out / run.key, time.monotonic()
        code, words = self._train(run, folder)
        if code == 0 and self.study.evaluation:
            code, words = (1, "not evaluated") if self._over.is_set() else self._evaluate(folder)
        if code == 0:
            result = read_json(folder / "metrics.json", "result")
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
        used = folder / CPU_SECONDS
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
        before = _number(used) or 0.0
        log = self.out / f"{run.key}.log"
        code, seconds, words = self._processes.run([*TRAIN, *arguments], log)
        if folder.exists():
            used.write_text(str(before + seconds))
        return code, words

    def _evaluate(self, folder: Path) -> tuple[int, str]:
        """Evaluate the tickets on corrupted and foreign images."""
        wanted, target = self.study.evaluation, folder / EVALUATION
        if wanted is None or target.exists():
            return 0, ""
        arguments = [str(folder), "--corruptions", "--severities", wanted.severities]
        arguments += ["--ood", self.study.foreign.name, "--out", str(target)]
        arguments += ["--device", self.device] if self.device != "auto" else []
        log = self.out / f"{folder.name}-evaluation.log"
        code, _, words = self._processes.run([*EVALUATE, *arguments], log)
        return code, words

    def _row(self, run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
        folder = self.out / run.key
        config, members = (
            read_json(folder / "config.json", "configuration"),
            result["member_accuracy"],
        )
        return {
            **config,
            **result,
            **environment("cpu" if result["device"] == "cpu" else "cuda"),
            "key": run.key,
            "settings": json.dumps(run.settings, sort_keys=True),
            "member_accuracy": sum(members) / len(members),
            "members": len(members),
            **self._robustness(folder),
            "seconds_per_epoch": result["train_seconds"] / result["epochs"],
            "cpu_seconds": _number(folder / CPU_SECONDS),
            "peak_mb": result["peak_memory_bytes"] / 1e6,
            "threads": self.threads,
            "run": now(),
        }

    def _robustness(self, folder: Path) -> dict[str, Any]:
        if self.study.evaluation is None:
            return {}
        found = read_json(folder / EVALUATION, "evaluation")
        return {
            "corrupted_accuracy": found["corruptions"]["accuracy"],
            "foreign_auroc": found["ood"][self.study.foreign.name]["entropy"]["auroc"],
        }


def _number(path: Path) -> float | None:
    return float(path.read_text()) if path.exists() else None
