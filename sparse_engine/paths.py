"""Paths as users write them: `~` and `~user` are home folders. Imports no torch."""

import os

from sparse_engine.errors import InputError


def expanded(text: str) -> str:
    """Return a path whose `~` or `~user` at the beginning is that home folder.

    The path may have a kind before it, as in `imagefolder:~/images`.

    Raises:
        InputError: there is no such home; nothing is ever read from, or written to, a folder
            called "~" unless it is written as `./~`.
    """
    kind, colon, path = text.rpartition(":~")
    kind, path = (kind + ":", "~" + path) if colon and "/" not in kind else ("", text)
    if not path.startswith("~"):
        return text
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        name = path.split("/")[0]
        raise InputError(f"'{text}': there is no home {name}; a folder of that name is ./{name}")
    return kind + whole
