"""What was measured on this machine, kept on disk: one JSON file by kind, device and versions.

A file is read once a process, so that what another process measures meanwhile changes no result of
this one. It lies in $SPARSE_ENGINE_CACHE, or in ~/.cache/sparse-engine.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

FOLDER = "SPARSE_ENGINE_CACHE"
Entry = TypeVar("Entry", bound=Sequence[float])


class Measurements(Generic[Entry]):
    """Entries by key, a few numbers each, with the file they are kept in."""

    def __init__(self, path: Path, entry: Callable[[Any], Entry]) -> None:
        """Read a file, if it exists; one that cannot be understood counts as empty, and says so.

        Args:
            path: of `cache_path`.
            entry: makes an entry of what JSON holds; TypeError or ValueError if it is none.
        """
        self.path, self._entry = path, entry
        self.entries = self._read()
        self._added: dict[str, Entry] = {}

    def add(self, entries: Mapping[str, Entry]) -> None:
        """Use these from now on in this process."""
        self.entries.update(entries)
        self._added.update(entries)

    def save(self) -> None:
        """Write to the file what was added; a reader sees the old file or the new one."""
        part = self.path.with_suffix(f".{os.getpid()}.part")
        merged = {**self._read(), **self._added}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({k: list(e) for k, e in merged.items()}, indent=0) + "\n")
            part.replace(self.path)
        except OSError as error:
            _warn("what was measured is not kept, and a second run may choose otherwise: %s", error)

    def parsed(self, found: Any) -> dict[str, Entry]:
        """Return entries from JSON; TypeError, ValueError or AttributeError if they are none."""
        return {key: self._entry(numbers) for key, numbers in found.items()}

    def _read(self) -> dict[str, Entry]:
        try:
            return self.parsed(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _warn("measurements '%s' cannot be used: %s", self.path, error)
            return {}


def numbers(found: Any) -> list[float]:
    """Return an entry of any length."""
    return [float(number) for number in found]


def timings(
    kind: str, device: torch.device, entry: Callable[[Any], list[float]] = numbers
) -> Measurements[list[float]]:
    """Return what depends on how long the kernels take on a device, and so on their code."""
    return Measurements(cache_path(kind, _hardware(device), f"kernels{_sources()}"), entry)


def cache_path(kind: str, device: str, *versions: str) -> Path:
    """Return the file of what was measured on a device, by the version of torch and others."""
    parts = (kind, device, f"torch{torch.__version__}", *versions)
    name = "-".join(re.sub(r"[^A-Za-z0-9.+]+", "_", part) for part in parts)
    return cache_folder() / f"{name}.json"


def cache_folder() -> Path:
    """Return the folder of what is kept on this machine between runs; it may not exist yet."""
    folder = os.environ.get(FOLDER) or "~/.cache/sparse-engine"
    try:
        return Path(folder).expanduser()
    except RuntimeError:  # as in a container whose user has no home
        place = Path(tempfile.gettempdir()) / "sparse-engine"
        _tell_once(f"there is no home for '{folder}'; {place} takes its place")
        return place


@functools.cache
def _tell_once(line: str) -> None:
    _warn("%s", line)


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()} cores"


@functools.cache
def processor() -> str:
    """Return the name of the CPU, which Linux tells in a file and Python does not.

    A virtual machine may hide the number, so that processors of unlike speed have one name; family
    and model tell them apart.
    """
    pattern = r"^(model name|cpu family|model)\s*:\s*(.+)$"
    facts = dict(re.findall(pattern, cpuinfo(), re.MULTILINE))
    name = facts.get("model name", "").strip() or platform.processor() or platform.machine()
    if re.search(r"\d", name) or not facts.keys() >= {"cpu family", "model"}:
        return name
    return f"{name} (family {facts['cpu family'].strip()}, model {facts['model'].strip()})"


def cpuinfo() -> str:
    """Return what Linux tells of the CPU; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


@functools.cache
def _sources() -> str:
    """Return a digest of the kernels' code: other code takes other times."""
    rooms = Path(__file__).parent.rglob("*")
    files = sorted(file for file in rooms if file.suffix in (".py", ".h", ".cpp"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def _warn(message: str, *details: object) -> None:
    logging.getLogger(__name__).warning(message, *details)
