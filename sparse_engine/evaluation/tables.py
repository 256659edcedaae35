"""The Markdown tables of an evaluation, and what its runs cost together. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SUMMED = (
    "train_flops",
    "train_flops_ratio",
    "test_flops_ratio",
    "parameters",
    "bytes",
    "train_seconds",
)
_QUALITY = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier"}


def total_costs(results: Sequence[Mapping[str, Any] | None]) -> dict[str, float | None]:
    """Return what runs cost together, from their metrics.json; None where one does not say.

    FLOPs, ratios to one dense network, seconds, parameters and bytes add up. The peak of memory
    is the highest, since runs are trained one after another.
    """
    costs: dict[str, float | None] = {}
    for name in (*_SUMMED, "peak_memory_bytes"):
        values = [(result or {}).get(name) for result in results]
        whole = max if name == "peak_memory_bytes" else sum
        told = all(isinstance(value, int | float) for value in values)
        costs[name] = whole(values) if told else None
    return costs


def report_tables(result: Mapping[str, Any]) -> str:
    """Return an evaluation (see evaluate.evaluate) as Markdown."""
    parts = [_quality_table(result), _cost_table(result["costs"])]
    if "disagreement" in result:
        parts.append(_diversity_table(result))
    if "corruptions" in result:
        parts.append(_corruption_table(result["corruptions"]))
    if "ood" in result:
        parts.append(_detection_table(result["ood"]))
    if "attacks" in result:
        parts.append(_attack_table(result["attacks"]))
    return "\n\n".join(parts)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells, the heading first, as an aligned Markdown table."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    heading, *body = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        for row in rows
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *body))


def named_members(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of each member, and of their mean and ensemble if there are several.

    `found` holds the ensemble's metrics, and those of each member as `members`.
    """
    members = found["members"]
    named = {f"member {number}": metrics for number, metrics in enumerate(members, 1)}
    if len(members) > 1:
        named["mean of members"] = {
            name: sum(m[name] for m in members) / len(members) for name in members[0]
        }
        named["ensemble"] = found
    return named


def _quality_table(result: Mapping[str, Any]) -> str:
    """Return metrics of members and ensemble, clean and (marked c) on corrupted images."""
    clean = named_members(result)
    corrupted = named_members(result["corruptions"]) if "corruptions" in result else {}
    heading = ["", *_QUALITY.values()]
    if corrupted:
        heading += ["cAccuracy", "cNLL", "cECE"]
    rows = [heading]
    for name, metrics in clean.items():
        row = [name, *(f"{metrics[column]:.4f}" for column in _QUALITY)]
        if corrupted:
            row += [f"{corrupted[name][column]:.4f}" for column in _QUALITY if column != "brier"]
        rows.append(row)
    return markdown_table(rows)


def _cost_table(costs: Mapping[str, Any]) -> str:
    def show(name: str, form: str, unit: float = 1) -> str:
        return "unknown" if costs[name] is None else format(costs[name] / unit, form)

    rows = [
        ["cost of all runs", "", "of one dense network"],
        ["training FLOPs", show("train_flops", ".3g"), show("train_flops_ratio", ".2f")],
        ["test FLOPs", "", show("test_flops_ratio", ".2f")],
        ["training seconds", show("train_seconds", ".1f"), ""],
        ["peak memory, MB", show("peak_memory_bytes", ".1f", 1e6), ""],
        ["parameters", show("parameters", ".0f"), ""],
        ["stored, MB", show("bytes", ".2f", 1e6), ""],
    ]
    return markdown_table(rows)


def _diversity_table(result: Mapping[str, Any]) -> str:
    """Return disagreement / KL of every ordered pair of members."""
    pairs = zip(result["disagreement_matrix"], result["kl_matrix"])
    rows = [["disagreement / KL", *(f"member {i + 1}" for i in range(len(result["members"])))]]
    for number, (differing, divergences) in enumerate(pairs, 1):
        cells = (f"{d:.4f} / {kl:.4f}" for d, kl in zip(differing, divergences))
        rows.append([f"member {number}", *cells])
    means = f"mean over pairs: {result['disagreement']:.4f} / {result['kl']:.4f}"
    return f"{markdown_table(rows)}\n\n{means}"


def _corruption_table(found: Mapping[str, Any]) -> str:
    """Return the ensemble's accuracy by family and severity, and each family's mean."""
    severities = [str(severity) for severity in found["severities"]]
    rows = [["accuracy, corrupted", *severities, "mean"]]
    for family, by_severity in found["families"].items():
        values = [by_severity[severity]["accuracy"] for severity in severities]
        rows.append([family, *(f"{v:.4f}" for v in (*values, sum(values) / len(values)))])
    return f"{markdown_table(rows)}\n\nimages: {found['source']}"


def _detection_table(found: Mapping[str, Any]) -> str:
    rows = [["foreign images", "score", "AUROC", "AUPR", "FPR95", "members' AUROC"]]
    for name, detected in found.items():
        for score in ("confidence", "entropy", "energy"):
            numbers = detected[score]
            members = [member[score]["auroc"] for member in detected["members"]]
            cells = (*numbers.values(), sum(members) / len(members))
            rows.append([name, score, *(f"{value:.4f}" for value in cells)])
    told = (f"{n}: {d['images']} images, {d['matched']}" for n, d in found.items())
    return "\n\n".join((markdown_table(rows), "\n".join(told)))


def _attack_table(found: Mapping[str, Any]) -> str:
    """Return each target's accuracy under attack, over the sources of the attack."""
    rows = [["attack", "target", "min", "mean", "max", "by itself"]]
    told = []
    for attack, result in found.items():
        targets = result["targets"]
        for number, target in enumerate(targets):
            is_ensemble = len(targets) > 1 and number == len(targets) - 1
            name = "ensemble" if is_ensemble else f"member {number + 1}"
            values = (*target.values(), result["matrix"][number][number])
            rows.append([attack, name, *(f"{value:.4f}" for value in values)])
        steps = f", {result['steps']} steps" if "steps" in result else ""
        told.append(f"{attack}: epsilon {result['epsilon']:.4f}{steps}, {result['images']} images")
    return "\n\n".join((markdown_table(rows), "\n".join(told)))
