"""Files of a run, training state above all: written whole or not at all, read without running code.

Imports torch when first used, so that a wrong run folder is told at once.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import warnings
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from sparse_engine.errors import InputError, RunFailure

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "sparse-engine-1"
PLAIN = (bool, int, float, str, type(None))


@contextmanager
def failing_clearly(path: Path) -> Iterator[None]:
    """Turn an error of the file system into a RunFailure in one line."""
    try:
        yield
    # What a writer makes of the error of a full disk differs.
    except (OSError, RuntimeError) as error:
        raise RunFailure(
            f"'{path}' cannot be written: {error}; what was written before is whole"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file that takes the place of `path` once it is whole and on the disk.

    Raises:
        RunFailure: it cannot be written; the old file is as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        with failing_clearly(path), part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written has no part, either
            part.unlink(missing_ok=True)


def save_file(content: dict[str, Any], path: Path) -> None:
    """Write tensors and plain containers in place of an old file; see replacing."""
    import torch

    with replacing(path) as file:
        torch.save({"format": FORMAT, **own_storages(content)}, file)


def own_storages(content: Any) -> Any:
    """Return tensors, in containers of any depth, without memory that is not theirs.

    torch.save writes whole storages: of a slice all that it was cut from, of several that share
    one its bytes once. Those that fill their storage stay as they are.
    """
    from torch import Tensor, nn

    if isinstance(content, Tensor):
        if not _is_part(content):
            return content
        own = content.detach().clone()
        is_parameter = isinstance(content, nn.Parameter)
        return nn.Parameter(own, content.requires_grad) if is_parameter else own
    if isinstance(content, dict):
        own = copy.copy(content)  # of the same kind, with the same attributes
        own.update((key, own_storages(value)) for key, value in content.items())
        return own
    if type(content) in (list, tuple):
        return type(content)(own_storages(value) for value in content)
    return content


def _is_part(tensor: Tensor) -> bool:
    import torch

    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    own = tensor.numel() * tensor.element_size()
    return plain and tensor.layout is torch.strided and tensor.untyped_storage().nbytes() != own


def save_json(content: dict[str, Any], path: Path) -> None:
    """Write a JSON object in place of an old file; see replacing."""
    with replacing(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def load_file(path: Path, *keys: str) -> dict[str, Any]:
    """Read what save_file wrote, tensors to the CPU; `keys` are those it must hold.

    Raises:
        InputError: the file is missing, damaged, or not one of ours.
    """
    if not path.is_file():
        raise InputError(f"checkpoint '{path}' does not exist")
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            _check_plain(content)
    # Bytes that are no checkpoint make torch warn, and raise almost anything, IndexError included.
    except Exception:
        raise InputError(f"checkpoint '{path}' is truncated or not a checkpoint") from None
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, str) or not version.startswith("sparse-engine-"):
        raise InputError(f"checkpoint '{path}' was not written by this program ({FORMAT})")
    if version != FORMAT:
        raise InputError(
            f"checkpoint '{path}' is of version {version}, this program reads {FORMAT}: "
            "use the version of sparse-engine that wrote it"
        )
    missing = [key for key in keys if key not in content]
    if missing:
        raise InputError(f"checkpoint '{path}' is of another kind: it has no {missing[0]}")
    return content


def _check_archive(path: Path) -> None:
    """Raise ValueError unless a file is a zip as torch.save writes it, with its checksums.

    torch.load looks at no checksum, and would unpack what is compressed, however large.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        size = sum(record.file_size for record in records)
        if packed or size > path.stat().st_size or archive.testzip() is not None:
            raise ValueError("compressed, overlapping or damaged records")


def _check_plain(content: Any) -> None:
    """Raise ValueError for anything but containers of numbers, words and whole CPU tensors."""
    from torch import Tensor

    left, seen = [content], set()
    while left:
        value = left.pop()
        if type(value) is Tensor:
            _check_whole(value)
        elif isinstance(value, Mapping | list | tuple):
            if id(value) not in seen:
                seen.add(id(value))
                left += [*value, *value.values()] if isinstance(value, Mapping) else value
        elif type(value) not in PLAIN:
            raise ValueError(f"a value of type {type(value).__name__}")


def _check_whole(tensor: Tensor) -> None:
    import torch

    usual = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not usual or tensor.is_quantized or tensor.is_nested or tensor.requires_grad:
        raise ValueError("a tensor of another kind")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError("a tensor larger than its memory")


def _sync_folder(folder: Path) -> None:
    """Bring a new name in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
        try:
            file = (self._folder / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"run folder '{self._folder}' cannot be written: {error.strerror}"
            ) from None
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
        self._file = file
        # A forked process has a copy, which would hold the lock after this one was killed.
        os.register_at_fork(after_in_child=partial(_close, weakref.ref(file)))
        with contextlib.suppress(OSError):  # what it says is only for people
            file.truncate(0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Unlock the folder."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
            self._file = None


def _close(reference: weakref.ref[TextIO]) -> None:
    file = reference()
    if file is not None:
        file.close()
