"""A run's folder: four files of JSON, metrics.csv and blocks.csv, last.pt, member_K.pt."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparse_engine.config.config import Config
from sparse_engine.config.values import as_trained, read_config_file, read_json
from sparse_engine.data.catalog import DatasetInfo, info_of
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.paths import expanded
from sparse_engine.runs.epoch_rows import BLOCK_COLUMNS, COLUMNS, BlockRow, whole_rows
from sparse_engine.runs.files import (
    LOCK,
    FolderLock,
    failing_clearly,
    load_file,
    replacing,
    save_file,
    save_json,
)


class RunFolder:
    """Reads and writes one run's files.

    last, previous: the newest checkpoint, and the one before for the case that it is damaged.
    """

    def __init__(self, path: Path) -> None:
        """Use a folder that exists; see create and existing."""
        self.path = path
        self.last, self.previous = path / "last.pt", path / "previous.pt"
        self._rows, self._block_rows = path / "metrics.csv", path / "blocks.csv"
        self._lock = FolderLock(path)

    def __enter__(self) -> RunFolder:
        """Keep other processes from running in this folder.

        Raises:
            InputError: one does.
        """
        self._lock.take()
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Make the folder of a new run, lock it, and write its config.json.

        Raises:
            InputError: the folder exists and is not empty, or cannot be made.
        """
        path = Path(expanded(config.out)) if config.out else _fresh_path(config)
        try:
            if path.exists() and (not path.is_dir() or _is_used(path)):
                raise InputError(
                    f"output folder '{path}' exists and is not empty; "
                    "choose another --out, or continue it with --resume"
                )
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path)
            folder._lock.take()
            save_json(config.saved(), path / "config.json")
        except (OSError, RunFailure) as error:
            raise InputError(f"output folder '{path}' cannot be made: {error}") from None
        return folder

    @classmethod
    def existing(cls, path: str) -> RunFolder:
        """Open the folder of a run that was started before."""
        folder = Path(expanded(path))
        if not (folder / "config.json").is_file():
            raise InputError(
                f"'{path}' is not a run folder: it has no config.json; name one that training made"
            )
        return cls(folder)

    @classmethod
    def inside(cls, outer: RunFolder, name: str) -> RunFolder:
        """Return a folder within another, made if it is not there."""
        path = outer.path / name
        with failing_clearly(path):
            path.mkdir(exist_ok=True)
        return cls(path)

    def config(self) -> Config:
        """Return the saved configuration."""
        return Config(**as_trained(read_config_file(str(self.path / "config.json"))))

    def save_info(self, info: DatasetInfo) -> None:
        """Write data.json: sizes, normalisation and class names of the data of the run."""
        save_json(asdict(info), self.path / "data.json")

    def info(self) -> DatasetInfo | None:
        """Return what is in data.json; None where an earlier version has left none.

        Raises:
            InputError: it is damaged.
        """
        path = self.path / "data.json"
        if not path.exists():
            return None
        facts = read_json(path, "file")
        try:
            return info_of(facts)
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"'{path}' is damaged ({error}); delete it, and the data set itself is asked"
            ) from None

    @property
    def kernels(self) -> Path:
        """The file of what was measured and decides which kernels the run takes.

        Runs of earlier versions have it under another name.
        """
        earlier = self.path / "picks.json"
        return earlier if earlier.exists() else self.path / "kernels.json"

    def save_kernel_choices(self, choices: Mapping[str, Any]) -> None:
        """Write kernels.json."""
        save_json(dict(choices), self.kernels)

    def kernel_choices(self) -> dict[str, Any] | None:
        """Return what is in kernels.json, None if there is none; InputError if it is no JSON."""
        return read_json(self.kernels, "file") if self.kernels.exists() else None

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write last.pt; the one before becomes previous.pt."""
        if self.last.exists():
            kept = self.previous.with_name("previous.pt.part")
            with failing_clearly(self.path):
                kept.unlink(missing_ok=True)
                os.link(self.last, kept)
                kept.replace(self.previous)
        save_file(state, self.last)

    def save_member(
        self, number: int, model_state: dict[str, Any], class_names: Sequence[str] = ()
    ) -> None:
        """Write ticket `number`, counted from 1, and what its classes are called."""
        ticket = {"member": number, "model": model_state, "class_names": list(class_names)}
        save_file(ticket, self.path / f"member_{number}.pt")

    def member_paths(self) -> list[Path]:
        """Return the files of all tickets, in order.

        Raises:
            InputError: there are none.
        """
        paths = sorted(self.path.glob("member_*.pt"), key=_number)
        if not paths:
            raise InputError(
                f"run '{self.path}' has no tickets yet (no member_K.pt); go on with "
                f"sparse-engine train --resume {self.path}"
            )
        return paths

    def load_member(self, number: int) -> dict[str, Any]:
        """Return the model state of one ticket; see load_ticket."""
        return load_ticket(self.path / f"member_{number}.pt")

    def add_row(self, row: Mapping[str, str]) -> None:
        """Append a row to metrics.csv, in texts as of EpochRow."""
        with failing_clearly(self.path):
            _append(self._rows, COLUMNS, [row])

    def add_block_rows(self, rows: Iterable[BlockRow]) -> None:
        """Append rows to blocks.csv, which a network without sparse layers does not have."""
        texts = [row.texts() for row in rows]
        if texts:
            with failing_clearly(self.path):
                _append(self._block_rows, BLOCK_COLUMNS, texts)

    def add_rows_of(self, other: RunFolder) -> None:
        """Append all rows of another run's metrics.csv and blocks.csv."""
        for path, theirs, columns in zip(self._tables, other._tables, (COLUMNS, BLOCK_COLUMNS)):
            if theirs.exists():
                with failing_clearly(self.path):
                    _append(path, columns, whole_rows(theirs, columns))

    def drop_rows_after(self, step: int) -> None:
        """Remove the rows that a resumed run will write again."""
        for path, columns in zip(self._tables, (COLUMNS, BLOCK_COLUMNS)):
            if path.exists():
                kept = io.StringIO(newline="")
                writer = csv.DictWriter(kept, columns)
                writer.writeheader()
                rows = whole_rows(path, columns)
                writer.writerows(row for row in rows if int(row["step"]) <= step)
                with replacing(path) as file:
                    file.write(kept.getvalue().encode())

    @property
    def _tables(self) -> tuple[Path, Path]:
        return self._rows, self._block_rows

    def save_result(self, result: dict[str, Any]) -> None:
        """Write metrics.json."""
        save_json(result, self.path / "metrics.json")

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, None of one that is not.

        Raises:
            InputError: it cannot be read.
        """
        path = self.path / "metrics.json"
        if not path.exists():
            return None
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            result = None
        if not isinstance(result, dict):
            raise InputError(
                f"'{path}' is damaged; delete it, and sparse-engine train --resume writes it again"
            )
        return result


def load_ticket(path: Path) -> dict[str, Any]:
    """Return the model state of member_K.pt.

    Raises:
        InputError: it cannot be read, or holds another ticket.
    """
    ticket = load_file(path, "member", "model")
    if type(ticket["member"]) is not int or path.name != f"member_{ticket['member']}.pt":
        raise InputError(f"'{path}' holds another ticket; restore the file")
    return ticket["model"]


class WatchedFolder(RunFolder):
    """The run folder as other processes than the first see it: they read, and write nothing."""

    def __enter__(self) -> RunFolder:
        """Leave the lock to the first process."""
        return self

    def _leave(self, *content: Any) -> None:
        """Leave it to the first process."""

    save_checkpoint = save_member = save_info = add_row = drop_rows_after = _leave
    add_block_rows = _leave


def _append(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Append rows to a CSV, which has a heading from its first row on."""
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def _is_used(path: Path) -> bool:
    """Return whether a folder holds anything but a lock, which a start that failed may leave."""
    return any(file.name != LOCK for file in path.iterdir())


def _fresh_path(config: Config) -> Path:
    dataset = config.dataset.replace(":", "-").replace("/", "-")
    number = 1
    while (path := Path("runs") / f"{config.method}-{dataset}-{number}").exists():
        number += 1
    return path


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("member_")
    return int(digits) if digits.isdecimal() else 0
