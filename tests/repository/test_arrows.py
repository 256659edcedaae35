"""Imports go down, from room to room and from package to package; types and lazy imports too."""

import ast
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"sparse_kernels": ROOT / "kernels", "sparse_engine": ROOT, "bench": ROOT}

# From the ground up. A word is a room, or a file at the root of the package.
FLOORS = {
    "sparse_kernels": (
        "block_kinds index_tensors layout measurements memory_order registration timing transforms",
        "cpu triton",
        "dispatch",
        "operators",
        "functional functional_fused tuner",
        "__init__",
    ),
    "sparse_engine": (
        "errors paths schema shards tables",
        "installed",
        "data figures optimizers",
        "layers",
        "models",
        "sparsity",
        "config",
        "device",
        "methods",
        "runs",
        "evaluation",
        "training",
        "planning",
        "train evaluate export commands earlier_names integrations",
        "__init__ __main__",
    ),
    "bench": ("report", "speed", "training ensemble kernels", "gpu", "study", "dev", "__init__"),
}
MOST_FILES = {"root": 12, "room": 24}


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


def own_imports(package):
    """Return the pairs of two files of a package, the first of which imports the second."""
    pairs = {(file, target) for file, first, target in imports(package) if first == package}
    return {(file, target) for file, target in pairs if file != target}


def floor(package, file):
    room = file.partition("/")[0]
    (found,) = (i for i, rooms in enumerate(FLOORS[package]) if room in rooms.split())
    return found


def goes_down(package, file, target):
    """Whether an import goes to a lower floor, or stays in its room or among a floor's files."""
    rooms = [name.partition("/")[0] if "/" in name else "" for name in (file, target)]
    floors = floor(package, file), floor(package, target)
    return floors[0] > floors[1] or (floors[0] == floors[1] and rooms[0] == rooms[1])


@pytest.mark.parametrize("package", FLOORS)
def test_arrows_run_down(package):
    arrows = own_imports(package)
    assert [arrow for arrow in sorted(arrows) if not goes_down(package, *arrow)] == []


@pytest.mark.parametrize("package", FLOORS)
def test_no_circle_of_files(package):
    groups = networkx.strongly_connected_components(networkx.DiGraph(own_imports(package)))
    assert [sorted(group) for group in groups if len(group) > 1] == []


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_are_small_and_their_init_is_a_docstring(package):
    root = FOLDERS[package] / package
    for folder in [root, *(path.parent for path in root.rglob("__init__.py"))]:
        files = [*folder.glob("*.py")]
        assert len(files) <= MOST_FILES["root" if folder == root else "room"], folder
        if folder != root:
            (statement,) = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
            assert isinstance(statement, ast.Expr), folder


@pytest.mark.parametrize(
    ("package", "above"),
    [("sparse_kernels", {"sparse_engine", "bench"}), ("sparse_engine", {"bench"})],
)
def test_packages_import_none_above_them(package, above):
    assert not {found for found in imports(package) if found[1] in above}
