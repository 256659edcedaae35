"""The command `sparse-engine`, also `python -m sparse_engine`: it runs the command that is named.

Imports no torch: help, the version and a name with a typo are told at once.
"""

import importlib
from collections.abc import Sequence
from typing import NoReturn

from sparse_engine import __version__
from sparse_engine.config.command import run_command
from sparse_engine.errors import InputError, nearest
from sparse_engine.tables import format_table

# The module whose `main` a command is, and what it does.
COMMANDS = {
    "train": ("sparse_engine.train", "train a sparse network or an ensemble of tickets"),
    "evaluate": ("sparse_engine.evaluate", "evaluate any set of runs as one ensemble"),
    "export": ("sparse_engine.export", "take a ticket somewhere else: safetensors, ONNX, ..."),
    "demo": ("sparse_engine.commands.demo", "half a minute: what sparse steps take here"),
    "plan": ("sparse_engine.commands.plan", "which training to choose for a budget of seconds"),
    "configs": ("sparse_engine.commands.configs", "list the papers' runs, and what they cost"),
}
_WORDS = """\
A ticket is a trained network that a run saves, member_K.pt. A member is a network whose
prediction an ensemble averages: most often one ticket."""


def main() -> NoReturn:
    """Run the command line, and exit."""
    run_command(run)


def run(arguments: Sequence[str]) -> int | None:
    """Run the command that the first of `arguments` names with the others.

    Raises:
        InputError: there is no command of that name; with the nearest one.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return None
    name, *others = arguments
    if name == "--version":
        print(f"sparse-engine {__version__}")
        return None
    if name.startswith("-"):
        raise InputError(
            f"'{name}' stands before a command; name one first, as in sparse-engine train {name}"
        )
    if name not in COMMANDS:
        choices = ", ".join(COMMANDS)
        raise InputError(f"unknown command '{name}'{nearest(name, COMMANDS)}; there are {choices}")
    return importlib.import_module(COMMANDS[name][0]).main(others)


def _help() -> str:
    rows = [(f"  {name}", what) for name, (_, what) in COMMANDS.items()]
    return "\n\n".join(
        (
            "usage: sparse-engine [--help | --version] COMMAND [flags]",
            "Sparse training of neural networks that is really faster.",
            f"commands:\n{format_table(rows)}",
            f"words:\n{_WORDS}",
            "sparse-engine COMMAND --help shows a command's flags.",
        )
    )


if __name__ == "__main__":
    main()
