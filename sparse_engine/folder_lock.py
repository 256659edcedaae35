"""One process at a time in a folder: a lock of the system, which dies with its process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from sparse_engine.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder are not noticed
    fcntl = None

LOCK = "lock"


class FolderLock:
    """The lock of a folder; its file stays, and what it says is only for people."""

    def __init__(self, folder: Path) -> None:
        """Lock nothing yet."""
        self._folder = folder
        self._file: TextIO | None = None

    def take(self) -> None:
        """Lock the folder, unless this object already has.

        Raises:
            InputError: another process has; it is named.
        """
        if self._file is not None or fcntl is None:
            return
        file = (self._folder / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise InputError(
                f"run folder '{self._folder}' is in use by process {owner or '?'}; "
                "wait for it, or stop it"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Unlock the folder."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None
