"""Rows of the reports: a dense step, and a sparse one that takes two fifths of its time."""

from bench.report.records import COLUMNS

STEP = {
    "run": "1", "report": "training", "device": "CPU x", "threads": "1", "dtype": "fp32",
    "subject": "wrn16-8", "batch": "32", "phase": "step", "p20_ms": "190", "p80_ms": "210",
    "n": "3", "dense_ms": "1000", "against": "dense", "flops_ratio": "0.2", "density": "0.2",
}  # fmt: skip


def row(**values) -> dict[str, str]:
    return {**dict.fromkeys(COLUMNS, ""), **STEP, **values}


DENSE = row(contender="dense", label="dense", p50_ms="1000", state_mb="100", density="1")
SPARSE = row(
    contender="auto",
    label="sparse",
    sparsity="0.8",
    distribution="uniform",
    block="64x64",
    p50_ms="400",
    state_mb="20",
    ratio_p20="0.39",
    ratio_p80="0.41",
)
