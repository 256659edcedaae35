"""Rows of the reports as Markdown. Imports no torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from bench.report.records import Row, best_dense, is_dense
from sparse_engine.errors import InputError

IDENTITY = (
    "report", "device", "threads", "dtype", "subject", "batch", "contender", "sparsity",
    "distribution", "block", "phase",
)  # fmt: skip
# What the README shows of what was measured.
SHOWN_SPARSITIES = ("0.8",)
# EDST, M = 3 on CIFAR: 150 epochs of exploration and three refinements of 100, against 250 epochs
# of the dense network (Liu et al. 2022, section 4.1).
TICKETS_EPOCHS, DENSE_EPOCHS = 450, 250
TARGET, PAPER = 0.70, 0.61


def markdown(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(markdown_lines(columns, cells))


def markdown_lines(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, each as soon as its cells are there."""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in cells:
        yield f"| {' | '.join(row)} |"


def with_block(text: str, name: str, body: str, where: str) -> str:
    """Return a document with another body between the two marks of a name.

    Raises:
        InputError: it has no such marks; `where` says which document.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise InputError(f"{where} needs the marks {begin} and {end} around its tables")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}\n\n{body}\n\n{end}{rest.split(end, 1)[1]}"


def latest(rows: Iterable[Row]) -> list[Row]:
    """Return the last row of each thing measured, in the order of the first."""
    return list({tuple(row[name] for name in IDENTITY): row for row in rows}.values())


def whole_steps(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of whole training steps."""
    return [row for row in rows if row["report"] == "training" and row["phase"] == "step"]


def time_ratio(row: Row) -> float:
    """Return the time of a row over the best dense one of its run."""
    return float(row["p50_ms"]) / float(row["dense_ms"])


def realised(row: Row) -> float:
    """Return the share of the step's time that is saved, over that of its FLOPs (1: all)."""
    return (1 - time_ratio(row)) / (1 - float(row["flops_ratio"]))


def ensemble_seconds(row: Row) -> float:
    """Return the training seconds of EDST with three tickets over one dense network's."""
    return TICKETS_EPOCHS / DENSE_EPOCHS * time_ratio(row)


def spread(row: Row) -> str:
    """Return a median and, in brackets, the 20th and 80th percentile, in ms."""
    low, middle, high = (f"{float(row[f'p{q}_ms']):.4g}" for q in (20, 50, 80))
    return f"{middle} ({low}-{high})"


def speed_table(rows: Sequence[Row]) -> str:
    """Return the README's first table: the fastest sparse step of each network and sparsity.

    A CPU's row is of the fewest threads that were timed; the same step with more, and the slim
    dense network of the same run, stand beside it. Columns without a figure are left out.
    """
    steps = whole_steps(latest(rows))
    sparse = [r for r in steps if r["label"] == "sparse" and r["sparsity"] in SHOWN_SPARSITIES]
    names = ("device", "dtype", "subject", "batch", "sparsity")
    chosen: dict[tuple[str, ...], Row] = {}
    for row in sorted(sparse, key=lambda row: (int(row["threads"] or 0), time_ratio(row))):
        chosen.setdefault(tuple(row[name] for name in names), row)
    order = ("subject", "batch", "sparsity")
    kept = sorted(chosen.values(), key=lambda row: (_on_cpu(row), *(row[n] for n in order)))
    found = [_shown(row, steps) for row in kept]
    all_names = dict.fromkeys(name for facts in found for name in facts)
    headings = [name for name in all_names if any(facts.get(name) for facts in found)]
    return markdown(headings, ([facts.get(n) or "-" for n in headings] for facts in found))


def _shown(row: Row, steps: Sequence[Row]) -> dict[str, str]:
    """Return a row of the README's first table, with what else was timed of its step."""
    same = ("device", "dtype", "subject", "batch", "sparsity", "distribution", "block")
    alike = [other for other in steps if all(other[n] == row[n] for n in same)]
    more = {
        f"with {other['threads']} threads": cells(other)["/ dense"]
        for other in alike
        if (other["contender"], other["label"]) == (row["contender"], row["label"])
        and other["threads"] != row["threads"]
    }
    slim = [r for r in alike if r["contender"] == "slim" and r["threads"] == row["threads"]]
    dense = partner(row, steps) or dict.fromkeys(row, "")
    facts = cells(row)
    names = ("device", "network, batch", "sparsity, blocks", "dense step", "sparse / dense")
    return {
        **{name: facts[name].removeprefix("CPU ") for name in names},
        **more,
        "slim / dense": cells(slim[-1])["step / dense"] if slim else "",
        **{name: facts[name] for name in ("FLOPs / dense", "EDST of 3 / dense")},
        "state / dense": _quotient(row["state_mb"], dense["state_mb"]),
        "peak memory / dense": _quotient(row["peak_mb"], dense["peak_mb"]),
    }


def partner(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the best dense row of the same network, phase and machine; of the same run first."""
    same = {n: row[n] for n in ("device", "threads", "dtype", "subject", "batch", "phase")}
    return best_dense(rows, **same, run=row["run"]) or best_dense(rows, **same)


def steps_table(rows: Sequence[Row]) -> str:
    """Return all training steps, each with the best dense one of its run."""
    headings = (
        "network, batch", "sparsity, blocks", "variant", "runs", "n", "ms (p20-p80)", "/ dense",
        "which dense", "FLOPs / dense", "saving realised", f"EDST, M = 3 (target {TARGET})",
        "TFLOP/s", "peak MB", "state MB", "J", "error",
    )  # fmt: skip
    return _table(headings, whole_steps(rows))


def phases_table(rows: Sequence[Row]) -> str:
    """Return the milliseconds of each phase of a training step, and what products leave of it.

    Products are convolution and linear layers, forward and backward; see bench/speed/products.py.
    """
    names = (
        "forward", "backward", "optimizer", "armed step", "topology update", "step", "products",
    )  # fmt: skip
    headings = ("network, batch", "sparsity, blocks", "variant")
    phases: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if row["report"] == "training":
            key = tuple(cells(row)[heading] for heading in headings)
            phases.setdefault(key, {})[row["phase"]] = _number(row["p50_ms"])
    lines = [
        [*key, *(times.get(name, "") for name in names), _share_of_rest(times)]
        for key, times in phases.items()
    ]
    return markdown((*headings, *names, "not in products"), lines)


def _share_of_rest(times: Mapping[str, str]) -> str:
    if "products" not in times:
        return ""
    return f"{1 - float(times['products']) / float(times['step']):.0%}"


def predictions_table(rows: Sequence[Row]) -> str:
    """Return the throughput of ensembles at test."""
    headings = (
        "network, batch", "sparsity, blocks", "variant", "runs", "ms (p20-p80)",
        "throughput / dense", "FLOPs / dense", "error",
    )  # fmt: skip
    return _table(headings, [row for row in rows if row["report"] == "ensemble"])


def layers_table(rows: Sequence[Row]) -> str:
    """Return single layers, pass by pass."""
    headings = (
        "layer, batch", "block", "density", "variant", "pass", "ms (p20-p80)", "/ dense",
        "TFLOP/s", "of the roofline", "error",
    )  # fmt: skip
    return _table(headings, [row for row in rows if row["report"] == "kernels"])


def savings(steps: Sequence[Row]) -> str:
    """Return what sparse steps are worth, those that have a dense one beside them."""
    headings = (
        "network, batch", "sparsity", "blocks", "variant", "step / dense", "FLOPs / dense",
        "saving realised", f"EDST, M = 3 / dense (target {TARGET:.2f}, FLOPs {PAPER})",
    )  # fmt: skip
    return _table(headings, [row for row in steps if not is_dense(row) and row["dense_ms"]])


def sections(rows: Sequence[Row]) -> str:
    """Return a device's tables, those that have rows, under headings."""
    tables = {
        "Training steps": steps_table(rows),
        "Phases of a training step, ms": phases_table(rows),
        "Three tickets at test": predictions_table(rows),
        "Single layers": layers_table(rows),
    }
    filled = {title: table for title, table in tables.items() if table.count("\n") > 1}
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in filled.items())


def summary(rows: Sequence[Row]) -> str:
    """Return the short table of a run: steps, what they are worth, and tickets at test."""
    steps = whole_steps(rows)
    dense = [
        f"- {row['subject']}, {row['batch']}, {row['contender']}: {spread(row)} ms"
        for row in steps
        if is_dense(row)
    ]
    parts = ["\n".join(dense), savings(steps), predictions_table(rows)]
    return "\n\n".join(part for part in parts if part)


def cells(row: Row) -> dict[str, str]:
    """Return what stands under each heading in a row of any of the tables."""
    ratio = time_ratio(row) if row["dense_ms"] else None
    low, high = _number(row["ratio_p20"]), _number(row["ratio_p80"])
    rounds = f" ({low}-{high})" if low else ""
    against_dense = "" if ratio is None else f"{ratio:.2f}{rounds}"
    saved = f"{realised(row):.0%}" if ratio is not None and row["sparsity"] else ""
    projected = f"{ensemble_seconds(row):.2f}" if saved and row["label"] == "sparse" else ""
    network = f"{row['subject']}, {row['batch']}"
    blocks = f"{row['distribution']}, {row['block']}"
    tickets = ", three tickets" * (row["report"] == "ensemble" and not is_dense(row))
    return {
        "device": f"{machine(row)}, {row['dtype']}",
        "network, batch": network,
        "layer, batch": network,
        "sparsity": row["sparsity"],
        "blocks": f"{row['block']}, {row['distribution']}",
        "sparsity, blocks": f"{row['sparsity']}, {blocks}" if row["sparsity"] else "-",
        "block": row["block"],
        "density": _number(row["density"]),
        "variant": row["contender"] + tickets,
        "pass": row["phase"],
        "runs": f"{row['label']} {_number(row['kernel_share'], '.0%')}".strip(),
        "n": row["n"],
        "ms (p20-p80)": spread(row),
        "dense step": f"{_number(row['dense_ms'], '.4g')} ms",
        "/ dense": against_dense,
        "sparse / dense": against_dense,
        "step / dense": "" if ratio is None else f"{ratio:.2f}",
        "throughput / dense": "" if ratio is None else f"{1 / ratio:.2f}",
        "which dense": row["against"],
        "FLOPs / dense": _number(row["flops_ratio"]),
        "saving realised": saved,
        f"EDST, M = 3 (target {TARGET})": projected,
        f"EDST, M = 3 / dense (target {TARGET:.2f}, FLOPs {PAPER})": projected or "-",
        "EDST of 3 / dense": projected,
        "TFLOP/s": row["tflops"],
        "of the roofline": _number(row["roofline"], ".0%"),
        "peak MB": row["peak_mb"],
        "state MB": row["state_mb"],
        "J": row["energy_j"],
        "error": row["error"],
    }


def line(row: Row) -> str:
    """Return what a person looks at in a row as it is measured."""
    faster = 1 / time_ratio(row) if row["dense_ms"] else None
    speed = f"x{faster:.2f} efficiency {faster * float(row['flops_ratio']):.0%}" if faster else ""
    where = f"{row['sparsity'] or '-':>7} {row['distribution']:8} {row['block']:>8}"
    return (
        f"{row['subject']:22} {where} {row['contender']:24} {row['phase']:16} "
        f"{float(row['p50_ms']):10.4f} ms {speed:22} {row['label']:6} "
        f"{_number(row['kernel_share'], '.0%')}"
    ).rstrip()


def _table(headings: Sequence[str], rows: Iterable[Row]) -> str:
    return markdown(headings, ([cells(row)[heading] for heading in headings] for row in rows))


def machine(row: Row) -> str:
    """Return the device of a row, with the threads of a CPU."""
    threads = f", {row['threads']} thread{'s' * (row['threads'] != '1')}" * _on_cpu(row)
    return f"{row['device']}{threads}"


def _on_cpu(row: Row) -> bool:
    return row["device"].startswith("CPU")


def _quotient(ours: str, dense: str) -> str:
    return f"{float(ours) / float(dense):.2f}" if ours and dense else ""


def _number(value: str, form: str = ".2f") -> str:
    return f"{float(value):{form}}" if value else ""
