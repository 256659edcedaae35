"""Help in two levels, `--help` and `--help-all`, with the defaults of what was chosen. No torch."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from sparse_engine.config.config import FIELDS

SHORT, LONG = ("-h", "--help"), "--help-all"
# What most trainings need; --help-all shows the others.
USUAL = (
    *("method", "out", "resume", "config", "dry_run", "seed", "device", "dtype"),
    *("sparsity", "block", "distribution", "topology", "update_interval"),
    *("dataset", "data_dir", "download", "batch_size", "model", "members"),
    *("scale", "epochs", "lr"),
)


def shown_by(arguments: Sequence[str]) -> Collection[str] | None:
    """Return the settings that a command line asks for help on, None where it asks for none."""
    if LONG in arguments:
        return FIELDS.keys()
    return USUAL if set(SHORT) & set(arguments) else None


def without_help(arguments: Sequence[str]) -> list[str]:
    """Return the other words of a command line."""
    return [word for word in arguments if word not in (*SHORT, LONG)]


def described(text: str, other_flags: Sequence[str], default: Any) -> str:
    """Return what help says of a setting: its text, its other flags, and its default in brackets.

    None stands for what is decided later: then the text's own brackets say how.
    """
    body, brackets = re.fullmatch(r"(.*?)( \[[^\[\]]*\])?", text).groups("")
    if default is not None and not isinstance(default, bool):
        brackets = f" [{default:g}]" if isinstance(default, float) else f" [{default}]"
    return body + "".join(f", also {flag}" for flag in other_flags) + brackets
