"""Folders that nobody but their user can write, for what this process will run."""

import os
import stat
from pathlib import Path


def private_folder(path: Path) -> Path:
    """Return a folder, which is made if need be, that nobody but this user can write or replace.

    Args:
        path: of the folder. The folder itself is no link; a folder above it may be one.

    Raises:
        OSError: it cannot be made, as in a cache that is read-only.
        PermissionError: somebody else owns it, or can write it or a folder above it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)  # a link to a folder is refused below
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"'{path}' is not a folder that only this user can write")
    for folder in path.resolve().parents:
        if not _is_kept_from_others(folder.stat()):
            raise PermissionError(f"others can write '{folder}'")
    return path


def _is_kept_from_others(folder: os.stat_result) -> bool:
    """Return whether only this user and root can put other things in place of what it holds."""
    if folder.st_uid not in (os.geteuid(), 0):
        return False
    if folder.st_mode & stat.S_ISVTX:  # as /tmp: what is in it can be replaced by its owner alone
        return True
    # Where a user has a group of their own, what they make is often writable by it.
    by_group = folder.st_mode & stat.S_IWGRP and folder.st_gid != os.getegid()
    return not by_group and not folder.st_mode & stat.S_IWOTH
