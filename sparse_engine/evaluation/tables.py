"""The tables of an evaluation, and what its runs cost together. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparse_engine.tables import format_table, markdown_table

_SUMMED = (
    "train_flops",
    "train_flops_ratio",
    "test_flops_ratio",
    "parameters",
    "bytes",
    "train_seconds",
)
_QUALITY = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier"}


def total_costs(results: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return what runs cost together, from their metrics.json; None where one does not say.

    FLOPs, ratios to one dense network, seconds, parameters and bytes add up. The peak of memory
    is the highest, since runs are trained one after another. Where runs were set against different
    dense runs, training FLOPs are set against the first one's, and `note` says so.
    """
    costs: dict[str, Any] = {}
    for name in (*_SUMMED, "peak_memory_bytes"):
        values = [(result or {}).get(name) for result in results]
        whole = max if name == "peak_memory_bytes" else sum
        told = all(isinstance(value, int | float) for value in values)
        costs[name] = whole(values) if told else None
    costs["note"] = None
    if costs["train_flops"] and costs["train_flops_ratio"]:
        dense = [r["train_flops"] / r["train_flops_ratio"] for r in results if r]
        if max(dense) > (1 + 1e-6) * min(dense):
            costs["train_flops_ratio"] = costs["train_flops"] / dense[0]
            costs["note"] = (
                "the runs were set against different dense runs, of "
                + ", ".join(f"{flops:.3g}" for flops in dense)
                + " FLOPs: training FLOPs are set against the first, and test FLOPs are sums of "
                "each run's ratio to its own dense network"
            )
    return costs


def report_tables(result: Mapping[str, Any]) -> str:
    """Return an evaluation (see evaluate.evaluate) as Markdown."""
    parts = [_quality_table(result), _cost_table({**result["costs"], **_test_time(result)})]
    if result.get("test_set", result["dataset"]) != result["dataset"]:
        parts.insert(1, f"test set: {result['test_set']}, {result['test_images']} images")
    if "disagreement" in result:
        parts.append(_diversity_table(result))
    for name, table in (
        ("corruptions", _corruption_table),
        ("ood", _detection_table),
        ("attacks", _attack_table),
    ):
        if name in result:
            parts.append(table(result[name]))
    return "\n\n".join(parts)


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Return members, their mean and the ensemble as aligned text; see named_members."""
    rows = [["", *_QUALITY]]
    rows += [[name, *_four(m[c] for c in _QUALITY)] for name, m in named_members(metrics).items()]
    return format_table(rows, left=1)


def mean_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of metrics by name."""
    return {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}


def named_members(ensemble: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of each member, and of their mean and ensemble if there are several.

    `ensemble` holds the ensemble's metrics, and those of each member as `members`.
    """
    members = ensemble["members"]
    named = {f"member {number}": metrics for number, metrics in enumerate(members, 1)}
    if len(members) > 1:
        named |= {"mean of members": mean_metrics(members), "ensemble": ensemble}
    return named


def _quality_table(result: Mapping[str, Any]) -> str:
    """Return metrics of members and ensemble, clean and (marked c) on corrupted images."""
    rows = [["", *_QUALITY.values()]]
    rows += [[name, *_four(m[c] for c in _QUALITY)] for name, m in named_members(result).items()]
    if "corruptions" in result:
        corrupted = named_members(result["corruptions"]).values()
        rows[0] += ["cAccuracy", "cNLL", "cECE"]
        for row, metrics in zip(rows[1:], corrupted):
            row += _four(metrics[column] for column in ("accuracy", "nll", "ece"))
    return markdown_table(rows)


def _cost_table(costs: Mapping[str, Any]) -> str:
    def show(name: str, form: str, unit: float = 1) -> str:
        return "unknown" if costs[name] is None else format(costs[name] / unit, form)

    has_time = costs["test_time"] is not None
    rows = [
        ["cost of all runs", "", "of one dense network, trained as --method dense"],
        ["training FLOPs", show("train_flops", ".3g"), show("train_flops_ratio", ".2f")],
        ["test FLOPs", "", show("test_flops_ratio", ".2f")],
        *([["test time", costs["test_time"], show("test_time_ratio", ".2f")]] * has_time),
        ["training seconds", show("train_seconds", ".1f"), ""],
        ["peak memory, MB", show("peak_memory_bytes", ".1f", 1e6), ""],
        ["parameters", show("parameters", ".0f"), ""],
        ["stored, MB", show("bytes", ".2f", 1e6), ""],
    ]
    return "\n\n".join([markdown_table(rows), *([costs["note"]] if costs["note"] else [])])


def _test_time(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all tickets take for a batch of images, in words, and over a dense network."""
    seconds = result.get("test_seconds")
    words = seconds and f"{1e3 * seconds:.3g} ms for {result['test_batch']} images"
    return {"test_time": words, "test_time_ratio": result.get("test_time_ratio")}


def _diversity_table(result: Mapping[str, Any]) -> str:
    """Return disagreement / KL of every ordered pair of members."""
    pairs = zip(result["disagreement_matrix"], result["kl_matrix"])
    rows = [["disagreement / KL", *(f"member {i + 1}" for i in range(len(result["members"])))]]
    for number, (differing, divergences) in enumerate(pairs, 1):
        cells = map(" / ".join, zip(_four(differing), _four(divergences)))
        rows.append([f"member {number}", *cells])
    means = f"mean over pairs: {result['disagreement']:.4f} / {result['kl']:.4f}"
    return f"{markdown_table(rows)}\n\n{means}"


def _corruption_table(corruptions: Mapping[str, Any]) -> str:
    """Return the ensemble's accuracy by family and severity, and each family's mean."""
    severities = [str(severity) for severity in corruptions["severities"]]
    rows = [["accuracy, corrupted", *severities, "mean"]]
    for family, by_severity in corruptions["families"].items():
        values = [by_severity[severity]["accuracy"] for severity in severities]
        rows.append([family, *_four([*values, sum(values) / len(values)])])
    return f"{markdown_table(rows)}\n\nimages: {corruptions['source']}"


def _detection_table(foreign: Mapping[str, Any]) -> str:
    rows = [["foreign images", "score", "AUROC", "AUPR", "FPR95", "members' AUROC"]]
    for name, detected in foreign.items():
        for score in ("confidence", "entropy", "energy"):
            members = [member[score]["auroc"] for member in detected["members"]]
            values = (*detected[score].values(), sum(members) / len(members))
            rows.append([name, score, *_four(values)])
    notes = (f"{n}: {d['images']} images, {d['matched']}" for n, d in foreign.items())
    return markdown_table(rows) + "\n\n" + "\n".join(notes)


def _attack_table(attacks: Mapping[str, Any]) -> str:
    """Return each target's accuracy under attack, over the sources of the attack."""
    rows, notes = [["attack", "target", "min", "mean", "max", "by itself"]], []
    for attack, result in attacks.items():
        targets = result["targets"]
        names = [f"member {number}" for number in range(1, max(2, len(targets)))] + ["ensemble"]
        for number, (name, target) in enumerate(zip(names, targets)):
            values = (*target.values(), result["matrix"][number][number])
            rows.append([attack, name, *_four(values)])
        steps = f", {result['steps']} steps" if "steps" in result else ""
        notes.append(f"{attack}: epsilon {result['epsilon']:.4f}{steps}, {result['images']} images")
    return markdown_table(rows) + "\n\n" + "\n".join(notes)


def _four(values: Iterable[float]) -> list[str]:
    """Return numbers with four decimals."""
    return [f"{value:.4f}" for value in values]
