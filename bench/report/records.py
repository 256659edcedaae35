"""The one CSV of all reports: its columns, where it lies, and what a figure is quoted with.

Rows are facts and are only ever appended; speed-ups are worked out by who reads them. Times are of
one `phase`; `dense_ms` is that of the best dense variant of the same run, `against` its name.
Imports no torch, so that what only reads starts at once.
"""

import csv
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_engine.errors import InputError

REPORTS = Path(__file__).parents[1] / "reports"
# A Linux system's words for instructions that multiply bf16.
BF16 = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX", "bf16": "Arm's BF16"}
REHEARSAL = "rehearsal"  # the device of rows that nothing was measured for
# run: start, in UTC. subject: network or layer. contender: the variant of it. label: "sparse" where
# 80 % of the sparse FLOPs or more ran on triton or native. n: repetitions. ratio_p20, ratio_p80: of
# time / dense time, round by round, where variants took turns. flops_ratio: promised, of the dense
# FLOPs. tflops: useful ones a second, dense_tflops: those the dense network would need. roofline:
# share of the GPU's bound. peak_mb: tensors on the GPU. state_mb: parameters, gradients,
# optimizer state and lists of blocks. energy_j: of one repetition. kernel_share: of sparse FLOPs,
# on triton or native.
# error: the largest relative one of a layer's results, or of an ensemble's; step_error: of a whole
# step's gradients.
COLUMNS = (
    "run", "report", "device", "driver", "threads", "torch", "triton", "commit", "dtype",
    "subject", "batch", "contender", "label", "sparsity", "density", "distribution", "block",
    "phase", "n", "p20_ms", "p50_ms", "p80_ms", "dense_ms", "against", "ratio_p20", "ratio_p80",
    "flops_ratio", "tflops", "dense_tflops", "roofline", "peak_mb", "state_mb", "energy_j",
    "kernel_share", "error", "step_error",
)  # fmt: skip
Row = dict[str, str]


class Records:
    """An append-only CSV of one folder, and the rows that this run has written to it."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Open a file, which is made with its folder if it is not there.

        Args:
            path: of the CSV.
            facts: columns that all rows of this run share, `run` among them.

        Raises:
            InputError: the file has other columns.
        """
        self.path, self.facts = path, dict(facts)
        self.rows = [row for row in read(path) if row["run"] == self.facts["run"]]
        _begin(path, COLUMNS)

    def add(self, **values: Any) -> Row:
        """Append a row; columns not given stay empty, numbers get five digits."""
        if unknown := sorted(values.keys() - COLUMNS):
            raise KeyError(f"'{unknown[0]}' is no column of the reports")
        self.rows.append(append_row(self.path, COLUMNS, {**self.facts, **values}))
        return self.rows[-1]


def append_row(path: Path, columns: Sequence[str], values: Mapping[str, Any]) -> Row:
    """Append a row to a CSV, which is made with its folder if it is not there; return its cells.

    Columns not given stay empty.
    """
    _begin(path, columns)
    row = {name: text_of(values.get(name)) for name in columns}
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, columns).writerow(row)
    return row


def _begin(path: Path, columns: Sequence[str]) -> None:
    if path.exists() and path.stat().st_size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(columns)


def best_dense(rows: Iterable[Row], **same: str) -> Row | None:
    """Return the fastest dense row of those that have the same cells, such as subject and phase."""
    dense = (r for r in rows if is_dense(r) and all(r[n] == cell for n, cell in same.items()))
    return min(dense, key=lambda row: float(row["p50_ms"]), default=None)


def is_dense(row: Row) -> bool:
    """Return whether a row is of the dense network or layer itself, not of a masked one."""
    return row["contender"].split()[0] == "dense"


def read(path: Path, columns: Sequence[str] = COLUMNS, flag: str = "--out") -> list[Row]:
    """Return the rows of a CSV; none of a file that is not there, or empty.

    Raises:
        InputError: it has other columns; `flag` is what names another file.
    """
    if not path.exists() or not path.stat().st_size:
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise InputError(
                f"'{path}' has other columns than are written here; move it away or use another "
                f"{flag}"
            )
        return list(reader)


def read_all(folder: Path) -> list[Row]:
    """Return the rows of all CSVs of a folder, in the order of the files' names."""
    return [row for path in sorted(folder.glob("*.csv")) for row in read(path)]


def text_of(value: Any) -> str:
    """Return a cell's text: five significant digits of a float, nothing for None."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def file_name(device: str, report: str) -> str:
    """Return the name of a report's CSV, such as cpu-training.csv."""
    kind = "cpu" if device.startswith("CPU") else re.sub(r"[^a-z0-9]+", "-", device.lower())
    return f"{kind.strip('-')}-{report}.csv"


def now() -> str:
    """Return the present in UTC, as the `run` column has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def opened(
    folder: Path, report: str, threads: int = 1, run: str | None = None
) -> tuple[str, Records]:
    """Return the device, made ready for measurements, and the CSV of a report on it.

    Args:
        folder: of the CSV.
        report: part of its name.
        threads: of a CPU.
        run: of this run; the present moment unless given.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    facts = {"run": run or now(), **environment(device)}
    shown = {**facts, "load": f"{os.getloadavg()[0]:.1f}"}
    print(", ".join(f"{name} {value}" for name, value in shown.items()), flush=True)
    return device, Records(folder / file_name(facts["device"], report), facts)


def environment(device: str) -> dict[str, Any]:
    """Return what a figure must be quoted with, for a device "cuda" or "cpu"."""
    import torch
    import triton

    gpu = device == "cuda"
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": device_name(device),
        "driver": _output(*query).splitlines()[0] if gpu else "-",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit(),
    }


def device_name(device: str) -> str:
    """Return what the reports call a device "cuda" or "cpu"; a rehearsal puts another here."""
    if device == "cpu":
        from sparse_kernels.measurements import cpuinfo, processor

        return f"CPU {processor()} {_bf16_products(cpuinfo())}".strip()
    import torch

    return torch.cuda.get_device_name()


def commit() -> str:
    """Return the commit of this code, or what the environment's COMMIT says."""
    root = str(Path(__file__).parent)
    return os.environ.get("COMMIT") or _output("git", "-C", root, "describe", "--always")


def _bf16_products(cpuinfo: str) -> str:
    """Return by which of its instructions the processor multiplies bf16, where Linux tells."""
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", cpuinfo, re.MULTILINE)
    if flags is None:
        return ""
    known = [name for flag, name in BF16.items() if flag in flags[1].split()]
    return f"with {' and '.join(known)}" if known else "without bf16 products"


def _output(*command: str) -> str:
    try:
        text = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        text = ""
    return text or "-"
