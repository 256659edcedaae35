"""What the makers' own benchmarks share: flags made of defaults, and a table row by row."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from bench.report.records import commit, device_name
from bench.report.tables import markdown_lines
from sparse_engine.config.flags import run_command
from sparse_engine.errors import InputError


def print_table(
    doc: str | None,
    columns: Sequence[str],
    rows: Callable[[argparse.Namespace], Iterable[Sequence[str]]],
    defaults: Mapping[str, Any],
    arguments: Sequence[str] | None = None,
) -> None:
    """Print a Markdown table, each row as soon as it is there; a command's main.

    Args:
        doc: of the command's file.
        columns: their headings.
        rows: makes the cells, of the options.
        defaults: of the flags by name; that of a flag with several values is a list, that of one
            with a choice a tuple of all values, its own first.
        arguments: of the command line, sys.argv unless given.
    """
    if arguments is None:
        run_command(partial(print_table, doc, columns, rows, defaults))
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        elif isinstance(default, list):
            kind = type(default[0])
            parser.add_argument(flag, nargs="*", type=kind, default=default, help=f"{default}")
        elif isinstance(default, tuple):
            parser.add_argument(flag, choices=default, default=default[0], help=f"[{default[0]}]")
        else:
            parser.add_argument(flag, type=type(default), default=default, help=f"[{default}]")
    options = parser.parse_args(arguments)
    threads = getattr(options, "threads", torch.get_num_threads())
    if isinstance(threads, int):  # else the rows set one number after another
        torch.set_num_threads(threads)
    versions = f"torch {torch.__version__}, commit {commit()}"
    print(f"{device_name('cpu')}, load {os.getloadavg()[0]:.1f}, {versions}, {options}")
    try:
        for line in markdown_lines(columns, rows(options)):
            print(line, flush=True)
    except InputError as error:
        sys.exit(f"error: {error}")
