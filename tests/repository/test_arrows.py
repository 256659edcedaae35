"""Imports go down, from room to room and from package to package; types and lazy imports too."""

import ast
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"sparse_kernels": ROOT / "kernels", "sparse_engine": ROOT, "bench": ROOT}

# From the ground up: a file imports files of its own room and of those above it in this table.
ROOMS = {
    "leaves": "errors schema",
    "data": "data/",
    "layers": """
        attention batch_norm blocks candidates chain channelwise initialisation layer
        modules optimizer_state recut replacement rows state_dict summary sync_batch_norm
    """,
    "models": """
        models/ flops fused_networks fused_torchvision grouped_layers grouping
        layer_problems stacking together
    """,
    "sparsity": """
        averaging budgets channel_groups channel_order convert criteria distribution dynamic
        erdos_renyi fan_in layer_times pruning ranking regroup rules starts swap timed topology
        update_schedule
    """,
    "config": "command_line config config_file run_settings sparsity_settings",
    "device": "determinism precision",
    "methods": "methods/ actions cuts grouped_run learning_rate losses phases recipes",
    "runs": """
        architecture checkpoint ensemble epoch exported folder_lock run_folder
        safetensors_file teacher ticket_file tickets
    """,
    "evaluation": "robustness/ evaluation evaluation_report metrics plots",
    "training": """
        between_phases break_even checkpoint_schedule costs cuda_graph distributed downsampling
        dry_run finite group_topology grouped_network job member_runs member_states network progress
        random_state result settle step stopping trainer trainer_state tune
    """,
    "commands": "__init__ evaluate export train",
}
FLOORS = {name: floor for floor, names in enumerate(ROOMS.values()) for name in names.split()}

# Arrows that go up today. The list may only become shorter.
UP = """
models/batch_ensemble -> config
models/mc_dropout -> config
models/mimo -> config
models/plain -> config
models/treenet -> config
pruning -> config
"""


def imports(package):
    """Yield file, package and file of everything of ours that a package's files import."""
    for path in sorted((FOLDERS[package] / package).rglob("*.py")):
        file = path.relative_to(FOLDERS[package] / package).with_suffix("").as_posix()
        for module in modules(ast.parse(path.read_text(encoding="utf-8"))):
            first, *parts = module.split(".")
            if first in FOLDERS:
                folder = FOLDERS[first] / first
                while parts and not folder.joinpath(*parts).with_suffix(".py").is_file():
                    parts.pop()
                yield file, first, "/".join(parts) or "__init__"


def modules(tree):
    """Yield the dotted names that a file imports; a name from a module with the module's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports():
    """Return the pairs of two files of sparse_engine, the first of which imports the second."""
    found = {
        (file, target)
        for file, package, target in imports("sparse_engine")
        if package == "sparse_engine"
    }
    return {(file, target) for file, target in found if file != target}


def floor(file):
    room, slash, _ = file.partition("/")
    return FLOORS[room + slash]


def lines(text):
    return {tuple(line.replace(" -> ", " ").split()) for line in text.splitlines() if line}


def test_arrows_run_down():
    up = {(file, target) for file, target in own_imports() if floor(target) > floor(file)}
    assert up == lines(UP)


def test_no_circle_of_files():
    groups = networkx.strongly_connected_components(networkx.DiGraph(own_imports()))
    assert [sorted(group) for group in groups if len(group) > 1] == []


@pytest.mark.parametrize(
    ("package", "above"),
    [("sparse_kernels", {"sparse_engine", "bench"}), ("sparse_engine", {"bench"})],
)
def test_packages_import_none_above_them(package, above):
    assert not {found for found in imports(package) if found[1] in above}
