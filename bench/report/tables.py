"""Rows of the reports as Markdown. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.report.records import Row, is_dense
from sparse_engine.errors import InputError

IDENTITY = (
    "report", "device", "threads", "dtype", "subject", "batch", "contender", "sparsity",
    "distribution", "block", "phase",
)  # fmt: skip
# What the README shows of what was measured.
SHOWN_SPARSITIES = ("0.8", "0.9")
SPEED_COLUMNS = (
    "device", "network, batch", "sparsity, blocks", "dense step", "sparse / dense",
    "FLOPs / dense", "EDST of 3 / dense", "state / dense", "peak memory / dense",
)  # fmt: skip
NOT_MEASURED = "not measured"


def latest(rows: Iterable[Row]) -> list[Row]:
    """Return the last row of each thing measured, in the order of the first."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        found[tuple(row[name] for name in IDENTITY)] = row
    return list(found.values())


def markdown(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])


def with_block(text: str, marks: tuple[str, str], block: str, where: str, what: str) -> str:
    """Return a document with another block in place of two marks and what is between them.

    Raises:
        InputError: it has no marks; `where` and `what` say which document and what they are around.
    """
    begin, end = marks
    if begin not in text or end not in text:
        raise InputError(f"{where} needs the marks {begin} and {end} around {what}")
    head, rest = text.split(begin, 1)
    return head + block + rest.split(end, 1)[1]


def speed_table(rows: Sequence[Row]) -> str:
    """Return the README's first table: the fastest sparse step of each network and sparsity."""
    steps = [row for row in latest(rows) if row["report"] == "training" and row["phase"] == "step"]
    chosen: dict[tuple[str, ...], Row] = {}
    for row in steps:
        if row["label"] != "sparse" or row["sparsity"] not in SHOWN_SPARSITIES:
            continue
        names = ("device", "threads", "subject", "batch", "sparsity")
        key = tuple(row[name] for name in names)
        if key not in chosen or time_ratio(row) < time_ratio(chosen[key]):
            chosen[key] = row
    cells = [_speed_cells(row, partner(row, steps)) for row in sorted(chosen.values(), key=_order)]
    if all(row["device"].startswith("CPU") for row in chosen.values()):
        cells.insert(0, ["NVIDIA GPU", "wrn28-10, 128", *[NOT_MEASURED] * 7])
    return markdown(SPEED_COLUMNS, cells)


def partner(row: Row, rows: Iterable[Row]) -> Row | None:
    """Return the best dense row of the same network, phase and machine; of the same run first."""
    same = ("device", "threads", "dtype", "subject", "batch", "phase")
    dense = [r for r in rows if is_dense(r) and all(r[name] == row[name] for name in same)]
    dense = [r for r in dense if r["run"] == row["run"]] or dense
    return min(dense, key=lambda r: float(r["p50_ms"]), default=None)


def steps_table(rows: Sequence[Row]) -> str:
    """Return all training steps, each with the best dense one of its run."""
    steps = [row for row in rows if row["report"] == "training" and row["phase"] == "step"]
    columns = (
        "network, batch", "sparsity, blocks", "contender", "runs", "n", "ms (p20-p80)", "/ dense",
        "which dense",
        "FLOPs / dense", "saving realised", f"EDST, M = 3 (target {TARGET})", "TFLOP/s",
        "peak MB", "state MB", "J", "error",
    )  # fmt: skip
    cells = []
    for row in steps:
        sparse = row["sparsity"] and row["dense_ms"]
        label = f"{row['label']} {_percent(row['kernel_share'])}".strip()
        cells.append(
            [
                f"{row['subject']}, {row['batch']}",
                _blocks(row),
                row["contender"],
                label,
                row["n"],
                spread(row),
                _ratio(row),
                row["against"],
                _two(row["flops_ratio"]),
                f"{realised(row):.0%}" if sparse else "",
                f"{ensemble_seconds(row):.2f}" if sparse and row["label"] == "sparse" else "",
                row["tflops"],
                row["peak_mb"],
                row["state_mb"],
                row["energy_j"],
                row["error"],
            ]
        )
    return markdown(columns, cells)


def phases_table(rows: Sequence[Row]) -> str:
    """Return the milliseconds of each phase of a training step."""
    names = ("forward", "backward", "optimizer", "armed step", "topology update", "step")
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if row["report"] == "training":
            key = f"{row['subject']}, {row['batch']}", _blocks(row), row["contender"]
            found.setdefault(key, {})[row["phase"]] = f"{float(row['p50_ms']):.2f}"
    cells = [[*key, *(phases.get(name, "") for name in names)] for key, phases in found.items()]
    return markdown(("network, batch", "sparsity, blocks", "contender", *names), cells)


def predictions_table(rows: Sequence[Row]) -> str:
    """Return the throughput of ensembles at test."""
    columns = ("network, batch", "sparsity, blocks", "contender", "runs", "ms (p20-p80)")
    columns = (*columns, "throughput / dense", "FLOPs / dense", "error")
    cells = [
        [
            f"{row['subject']}, {row['batch']}",
            _blocks(row),
            row["contender"] + ("" if is_dense(row) else ", three tickets"),
            f"{row['label']} {_percent(row['kernel_share'])}".strip(),
            spread(row),
            f"{1 / time_ratio(row):.2f}" if row["dense_ms"] else "",
            _two(row["flops_ratio"]),
            row["error"],
        ]
        for row in rows
        if row["report"] == "ensemble"
    ]
    return markdown(columns, cells)


def layers_table(rows: Sequence[Row]) -> str:
    """Return single layers, pass by pass."""
    columns = ("layer, batch", "block", "density", "contender", "pass", "ms (p20-p80)", "/ dense")
    columns = (*columns, "TFLOP/s", "of the roofline", "error")
    cells = [
        [
            f"{row['subject']}, {row['batch']}",
            row["block"],
            _two(row["density"]),
            row["contender"],
            row["phase"],
            spread(row),
            _ratio(row),
            row["tflops"],
            _percent(row["roofline"]),
            row["error"],
        ]
        for row in rows
        if row["report"] == "kernels"
    ]
    return markdown(columns, cells)


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "training": ("Training steps", steps_table),
    "phases": ("Phases of a training step, ms", phases_table),
    "ensemble": ("Three tickets at test", predictions_table),
    "kernels": ("Single layers", layers_table),
}


def sections(rows: Sequence[Row]) -> str:
    """Return a device's tables, those that have rows, under headings."""
    parts = []
    for title, table in SECTIONS.values():
        text = table(rows)
        if text.count("\n") > 1:
            parts.append(f"### {title}\n\n{text}")
    return "\n\n".join(parts)


def summary(rows: Sequence[Row]) -> str:
    """Return the short table of a run: steps, what they are worth, and tickets at test."""
    steps = [row for row in rows if row["report"] == "training" and row["phase"] == "step"]
    dense = [
        f"- {row['subject']}, {row['batch']}, {row['contender']}: {spread(row)} ms"
        for row in steps
        if is_dense(row)
    ]
    parts = ["\n".join(dense), savings(steps), predictions_table(rows)]
    return "\n\n".join(part for part in parts if part)


def spread(row: Row) -> str:
    """Return a median and, in brackets, the 20th and 80th percentile, in ms."""
    low, middle, high = (f"{float(row[f'p{q}_ms']):.4g}" for q in (20, 50, 80))
    return f"{middle} ({low}-{high})"


def _speed_cells(row: Row, dense: Row | None) -> list[str]:
    state = peak = ""
    if dense:
        state = _quotient(row["state_mb"], dense["state_mb"])
        peak = _quotient(row["peak_mb"], dense["peak_mb"])
    threads = f", {row['threads']} thread{'s' * (row['threads'] != '1')}"
    cpu = row["device"].startswith("CPU")
    return [
        f"{row['device']}{threads if cpu else ''}, {row['dtype']}",
        f"{row['subject']}, {row['batch']}",
        _blocks(row),
        f"{float(row['dense_ms']):.4g} ms",
        _ratio(row),
        _two(row["flops_ratio"]),
        f"{ensemble_seconds(row):.2f}",
        state,
        peak or "-",
    ]


def _order(row: Row) -> tuple:
    return row["device"].startswith("CPU"), row["subject"], row["batch"], row["sparsity"]


def _blocks(row: Row) -> str:
    if not row["sparsity"]:
        return "-"
    return f"{row['sparsity']}, {row['distribution']}, {row['block']}"


def _ratio(row: Row) -> str:
    if not row["dense_ms"]:
        return ""
    low, high = _two(row["ratio_p20"]), _two(row["ratio_p80"])
    return f"{time_ratio(row):.2f}" + (f" ({low}-{high})" if low else "")


def _quotient(ours: str, dense: str) -> str:
    return f"{float(ours) / float(dense):.2f}" if ours and dense else ""


def _two(value: str) -> str:
    return f"{float(value):.2f}" if value else ""


def _percent(value: str) -> str:
    return f"{float(value):.0%}" if value else ""


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
