"""What a step's time is worth: seconds saved of the FLOPs saved, and a ticket ensemble's training.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.records import Row, is_dense

# EDST, M = 3 on CIFAR: 150 epochs of exploration and three refinements of 100, against 250 epochs
# of the dense network (Liu et al. 2022, section 4.1).
TICKETS_EPOCHS, DENSE_EPOCHS = 450, 250
TARGET, PAPER = 0.70, 0.61


def time_ratio(row: Row) -> float:
    """Return the time of a row over the best dense one of its run."""
    return float(row["p50_ms"]) / float(row["dense_ms"])


def realised(row: Row) -> float:
    """Return the share of the step's time that is saved, over that of its FLOPs (1: all)."""
    return (1 - time_ratio(row)) / (1 - float(row["flops_ratio"]))


def ensemble_seconds(row: Row) -> float:
    """Return the training seconds of EDST with three tickets over one dense network's."""
    return TICKETS_EPOCHS / DENSE_EPOCHS * time_ratio(row)


def savings(rows: Sequence[Row]) -> str:
    """Return a Markdown table of the sparse contenders' steps."""
    lines = [
        "| network, batch | sparsity | blocks | contender | step / dense | FLOPs / dense "
        f"| saving realised | EDST, M = 3 / dense (target {TARGET:.2f}, FLOPs {PAPER}) |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        if is_dense(row) or not row["dense_ms"]:
            continue
        projected = f"{ensemble_seconds(row):.2f}" if row["label"] == "sparse" else "-"
        lines.append(
            f"| {row['subject']}, {row['batch']} | {row['sparsity']} "
            f"| {row['block']}, {row['distribution']} | {row['contender']} | {time_ratio(row):.2f} "
            f"| {float(row['flops_ratio']):.2f} | {realised(row):.0%} | {projected} |"
        )
    return "\n".join(lines)
