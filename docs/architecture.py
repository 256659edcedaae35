"""The map of the code, made of the first line of every module: `python docs/architecture.py`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "architecture.md"
INTRODUCTION = """# Where things are

Three packages: `sparse_kernels` (operators and kernels; knows torch, nothing of training),
`sparse_engine` (layers, training, tickets) and `bench` (measurements). A folder is a room: one
subject. Rooms stand here from the ground up, and a file imports only from its own room and from
rooms below it (`tests/repository/test_arrows.py` holds the order and checks it).
A line says what a file holds, in the words of the file itself: this page is made by
`python docs/architecture.py`, and a test compares it.
"""
# From the ground up; a folder's own files stand where it does.
ROOMS = {
    "kernels/sparse_kernels": (".", "cpu", "triton", "dispatch", "operators"),
    "sparse_engine": (
        *(
            ".",
            "data",
            "figures",
            "optimizers",
            "layers",
            "layers/ids",
            "layers/replacement",
            "layers/weight",
        ),
        *("models", "models/grouped", "sparsity", "sparsity/channel_permutation", "config"),
        *("methods", "runs", "evaluation", "evaluation/robustness", "training", "training/times"),
        *("planning", "commands", "integrations", "earlier_names"),
    ),
    "bench": (".", "report", "speed", "gpu", "study", "dev"),
}


def main() -> None:
    """Write the page."""
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET}")


def page() -> str:
    """Return the page: a heading a package, a list a room.

    Raises:
        ValueError: a folder of Python files is in none of ROOMS.
    """
    parts = [INTRODUCTION]
    for package, rooms in ROOMS.items():
        root = ROOT / package
        if missing := {*root.rglob("__init__.py")} - {root / r / "__init__.py" for r in rooms}:
            raise ValueError(f"put these into ROOMS: {sorted(map(str, missing))}")
        parts.append(f"## `{package}`\n\n{first_line(root / '__init__.py')}\n")
        for room in rooms:
            if room != ".":
                parts.append(f"### `{room}`\n\n{first_line(root / room / '__init__.py')}\n")
            files = [path for path in sorted((root / room).glob("*.py")) if path.stem != "__init__"]
            parts.append("\n".join(f"- `{path.name}`: {first_line(path)}" for path in files) + "\n")
    return "\n".join(parts)


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (text or "").partition("\n")[0]


if __name__ == "__main__":
    main()
