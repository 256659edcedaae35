"""The index of every public name, made of the docstrings: `python docs/reference.py`."""

import ast
import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, get_args

import sparse_engine
import sparse_kernels
from sparse_engine.errors import EARLIER_NAMES_GO_IN

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "reference.md"
INTRODUCTION = """# Reference: every public name

Names without a dot are imported from `sparse_engine`, or, under *Operators*, from `sparse_kernels`:
`from sparse_engine import sparsify`. A line is the first of the name's docstring; arguments,
shapes and errors are in the docstring itself (`help(sparsify)`), and as pages in build/docs, which
`make docs` writes. What is not on this page is not public and may change in any release; what is
promised of the rest: [CHANGELOG.md](../CHANGELOG.md).
This page is made by `python docs/reference.py`, and a test compares it.

## Where to begin

{begin}
Words are explained in [terms.md](terms.md). Public besides: the commands, their flags and exit
codes, the files and JSON fields of a run ([runs.md](runs.md)), and exported files
([export.md](export.md)).
"""


BEGIN = (
    (
        "a model, and a training loop of your own",
        "`sparsify`, `DynamicSparsity`, `densify`",
        "[README.md](../README.md#sparse-layers-in-your-own-loop), "
        "[your_own_loop.md](your_own_loop.md)",
    ),
    (
        "a Trainer of Lightning or of transformers",
        "`DynamicSparsityCallback`",
        "[your_own_loop.md](your_own_loop.md#other-peoples-trainers)",
    ),
    (
        "images with labels, and no code",
        "`sparse-engine train`",
        "[training.md](training.md), [methods.md](methods.md)",
    ),
    (
        "seconds, and no method yet",
        "`sparse-engine plan`",
        "[training.md](training.md#a-budget-of-seconds)",
    ),
    (
        "runs that have ended",
        "`sparse-engine evaluate`, `TicketEnsemble`",
        "[evaluation.md](evaluation.md), [runs.md](runs.md)",
    ),
    (
        "a ticket that is wanted elsewhere",
        "`sparse-engine export`",
        "[export.md](export.md)",
    ),
    ("a network of your own layers", "`SparseLinear`, `SparseConv2d`", "[layers.md](layers.md)"),
    (
        "kernels in mind",
        "`BlockLayout`, `block_linear`",
        "[kernels.md](kernels.md), [design.md](design.md)",
    ),
)


NOT_IMPORTED = ".integrations."


class Group(NamedTuple):
    """Public names that serve one purpose; those of neither package's root are dotted."""

    heading: str
    page: str
    names: tuple[str, ...]


GROUPS = (
    Group(
        "Make a model sparse, and dense again",
        "layers.md",
        (
            *("sparsify", "densify", "dense_state_dict", "report", "draw_blocks", "refresh"),
            *("ErdosRenyi", "snip_scores", "grasp_scores", "draw_by_fan_in"),
            "sparse_engine.sparsity.distribution.Sparsity",
            "sparse_engine.layers.report.Report",
            "sparse_engine.layers.report.LayerRow",
        ),
    ),
    Group(
        "Update the topology while you train",
        "your_own_loop.md",
        (
            "DynamicSparsity",
            "sparse_engine.integrations.lightning.DynamicSparsityCallback",
            "sparse_engine.integrations.transformers.DynamicSparsityCallback",
        ),
    ),
    Group(
        "Single layers",
        "layers.md",
        (
            *("SparseConv2d", "SparseLinear"),
            "sparse_engine.layers.other_kinds.SparseConv1d",
            "sparse_engine.layers.other_kinds.SparseTransposedLinear",
            "sparse_engine.layers.attention.ProjectedAttention",
        ),
    ),
    Group("Save time", "layers.md", ("fuse", "to_rows", "orders", "tune")),
    Group(
        "Ensembles",
        "evaluation.md",
        (
            *("TicketEnsemble", "sparse_engine.runs.ensemble.Uncertainty"),
            *("group", "GroupedMembers", "GroupTopology"),
        ),
    ),
    Group(
        "Files",
        "export.md",
        (
            *("save_safetensors", "load_safetensors", "load_torch_export", "to_aten"),
            *(f"sparse_engine.runs.exported.save_{f}" for f in ("torch_export", "onnx", "dense")),
        ),
    ),
    Group(
        "Metrics",
        "evaluation.md",
        tuple(
            f"sparse_engine.evaluation.metrics.{name}"
            for name in (
                *("accuracy", "negative_log_likelihood", "brier_score"),
                *("expected_calibration_error", "calibration_bins", "CalibrationBins"),
                *("classification_metrics", "disagreement", "kl_divergence"),
            )
        ),
    ),
    Group(
        "Operators",
        "kernels.md",
        (
            *("BlockLayout", "block_linear", "block_conv2d", "block_conv2d_fused", "Norm"),
            "decompositions",
            "sparse_kernels.dispatch.backend.forced_backend",
        ),
    ),
    Group(
        "Errors",
        "runs.md#exit-codes-and-messages",
        (
            *(f"sparse_engine.errors.{n}" for n in ("InputError", "UnreadableFile", "RunFailure")),
            *("sparse_engine.errors.ReplacedLayerWarning",),
            "sparse_kernels.dispatch.backend.BackendError",
        ),
    ),
)
# Types of arguments that are one of several names, and who takes them.
CHOICES = {
    "sparse_engine.sparsity.update_schedule.UpdateRule": "`rule` of `DynamicSparsity`",
    "sparse_engine.training.group_topology.GroupRule": "`rule` of `GroupTopology`",
    "sparse_engine.sparsity.update_schedule.DropSchedule": "`schedule` of `DynamicSparsity`",
    "sparse_engine.sparsity.erdos_renyi.DistributionName": "`distribution` of `sparsify`",
    "sparse_engine.sparsity.sparsify.Init": "`init` of `sparsify`",
    "sparse_kernels.layout.Taps": "`taps` of `sparsify`, `SparseConv2d` and `BlockLayout`",
    "sparse_kernels.dispatch.backend.Backend": "`forced_backend`, `SPARSE_ENGINE_BACKEND`",
    "sparse_engine.config.config.Dtype": "`--dtype`",
}
VARIABLES = {
    "SPARSE_ENGINE_BACKEND": "the implementation that sparse layers run on: `auto` unless set",
    "SPARSE_ENGINE_CACHE": "the folder of what was compiled and measured on this machine: "
    "`~/.cache/sparse-engine` unless set",
    "SPARSE_ENGINE_CXX": "the C++ compiler of the native kernels; `off` for none",
}
# Earlier names besides modules.
EARLIER = {
    "`sparse_engine.Together`": "`GroupedMembers`",
    "`sparsify(regroup=True)`, `--regroup`": "`permute_channels=True`, `--permute-channels`",
    "`layer.arm()`, `.disarm()`, `.is_armed`": "`layer.collect()`, `.stop()`, `.is_collecting`",
    "`row.all_taps` of a report": '`row.taps == "all"`',
    "backend `gemm`": "`native`",
    "`sparse-engine export --member K`": "`--ticket K`",
    "`--config configs/NAME.json`, as a checkout had it": "`--config NAME`",
    "`--contenders` of `python -m bench.training` and `bench.ensemble`": "`--variants`",
}


def main() -> None:
    """Write the page."""
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET}")


def page() -> str:
    """Return the page: a table of where to begin, and a list a group."""
    parts = [INTRODUCTION.format(begin=table(("you have", "begin with", "and read"), BEGIN))]
    for group in GROUPS:
        lines = "\n".join(f"- `{name}`: {summary(name)}" for name in group.names)
        more = f"More: [{group.page.partition('#')[0]}]({group.page})."
        parts.append(f"## {group.heading}\n\n{more}\n\n{lines}\n")
    return "\n".join((*parts, *tables()))


def tables() -> list[str]:
    """Return the tables at the end: names that arguments take, variables, and earlier names."""
    choices = {
        f"`{name}`": (", ".join(f"`{choice}`" for choice in get_args(found(name))), taken_by)
        for name, taken_by in CHOICES.items()
    }
    modules = {f"`{earlier}`": f"`{present}`" for earlier, present in earlier_modules().items()}
    return [
        "## Names that arguments take\n\nTypes, so that an editor tells of a typo.\n",
        table(("type", "one of", "taken by"), ((n, *rest) for n, rest in choices.items())),
        "## Environment variables\n",
        table(("variable", "what it says"), [(f"`{n}`", said) for n, said in VARIABLES.items()]),
        f"## Earlier names\n\nThey warn, and go in {EARLIER_NAMES_GO_IN}. Files by earlier names "
        "are read for good.\n",
        table(("was", "is"), [*EARLIER.items(), *modules.items()]),
    ]


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines).replace("| --- ", "|---") + "\n"


def home(name: str) -> str:
    """Return where a name is defined, dotted."""
    if "." in name:
        return name
    if name in sparse_kernels.__all__:
        return f"{getattr(sparse_kernels, name).__module__}.{name}"
    return f"sparse_engine.{sparse_engine._HOMES[name]}.{name}"


def found(name: str) -> object:
    """Return what a dotted name stands for."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def summary(name: str) -> str:
    """Return the first sentences of a name's docstring."""
    text = inspect.getdoc(found(home(name))) if NOT_IMPORTED not in name else written(name)
    return " ".join((text or "").partition("\n\n")[0].split())


def written(name: str) -> str | None:
    """Return a docstring as the source has it, without other people's packages."""
    module, _, own = name.rpartition(".")
    text = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    (node,) = (n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == own)
    return ast.get_docstring(node)


def earlier_modules() -> dict[str, str]:
    """Return the present name of each module that has an earlier one."""
    names = {}
    for path in sorted((ROOT / "sparse_engine" / "earlier_names").glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        names[f"sparse_engine.{path.stem}"] = text.removeprefix("Now ").removesuffix(".")
    return names


if __name__ == "__main__":
    main()
