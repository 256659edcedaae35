"""A study as its JSON file says it: data, settings that all runs share, and grids of runs.

    {"title": "Blocks of a WRN-16-4 on a part of CIFAR-10",
     "data": {"dataset": "cifar10", "pixels": 16, "train": 20000, "test": 10000},
     "settings": {"model": "wrn16-4", "epochs": 3},
     "grids": {"blocks": {"settings": {"method": "rigl", "sparsity": [0.8, 0.9], "block": ["1x1", "32x32"]},
                          "seeds": 3, "against": {"block": "1x1"}},
               "ways": {"settings": {"method": "rigl", "sparsity": 0.9, "block": "32x32"},
                        "variants": {"plain": {}, "faster": {"lr": 0.2}},
                        "seeds": 3, "against": "plain"}}}

Settings are those of `sparse_engine.train`; a list makes an axis, and each axis is crossed with the
others and with the variants. `data` without `pixels` and `train` is a data set as it is. A run that
two grids share is made once. Imports no torch.
"""  # noqa: E501 - the example is JSON as people write it

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_engine.config.config import Config
from sparse_engine.config.values import check_values, read_json
from sparse_engine.errors import InputError, nearest
from sparse_engine.methods.resolve import resolve

# What the study itself decides for each run.
OWN = ("dataset", "data_dir", "seed", "out", "resume", "config", "dry_run", "download")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Which images: the first `train` and `test` ones of a data set, made `pixels` wide."""

    dataset: str
    pixels: int | None = None
    train: int | None = None
    test: int | None = None

    @property
    def name(self) -> str:
        """The name of the small set, or of the data set itself where all of it is taken."""
        if self.whole:
            return self.dataset
        sizes = (f"{self.pixels}px" if self.pixels else "", self.train, self.test)
        return "-".join(str(part) for part in (self.dataset, *sizes) if part)

    @property
    def whole(self) -> bool:
        """Whether it is the data set itself."""
        return not (self.pixels or self.train or self.test)


@dataclass(frozen=True)
class Run:
    """One training.

    key: of everything that was said about it, seed included; point: its place on the grid, by
    axis, "variant" among them.
    """

    key: str
    settings: Settings
    point: tuple[tuple[str, Any], ...]
    seed: int


@dataclass(frozen=True)
class Grid:
    """Runs that are compared with each other; `against` says with which point."""

    name: str
    runs: tuple[Run, ...]
    against: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A whole file; `name` is the file's, `settings` those of all runs."""

    name: str
    title: str
    data: Data
    settings: Settings
    grids: tuple[Grid, ...]

    def runs(self) -> list[Run]:
        """Return every run once, grid by grid, each grid seed by seed."""
        return list({run.key: run for grid in self.grids for run in grid.runs}.values())


def read_study(path: Path) -> Study:
    """Return a study, every run of which has been checked.

    Raises:
        InputError: no such file, no JSON, unknown names, or settings that contradict each other.
    """
    found = read_json(path, "study")
    where = f"study '{path}'"
    found = _object(found, where, ("title", "data", "settings", "grids"), ("data", "grids"))
    data = _data(found["data"], f"{where}, data")
    shared = _object(found.get("settings", {}), f"{where}, settings")
    grids = _object(found["grids"], f"{where}, grids")
    read = (_grid(name, grids[name], shared, data, f"{where}, grid '{name}'") for name in grids)
    return Study(path.stem, found.get("title", path.stem), data, shared, tuple(read))


def _data(found: Any, where: str) -> Data:
    found = _object(found, where, ("dataset", "pixels", "train", "test"), ("dataset",))
    for name, value in found.items():
        kind = str if name == "dataset" else int
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 1):
            raise InputError(f"{where}: {name} should be a {kind.__name__}, found {value!r}")
    return Data(**found)


def _grid(name: str, found: Any, shared: Settings, data: Data, where: str) -> Grid:
    found = _object(found, where, ("settings", "variants", "seeds", "against"), ("seeds",))
    seeds = found["seeds"]
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise InputError(f"{where}: seeds should be a count or a list of numbers, found {seeds!r}")
    points = list(_points(found, where))
    against = found.get("against", {})
    against = {"variant": against} if isinstance(against, str) else against
    axes = {axis for point, _ in points for axis in point}
    for axis in _object(against, f"{where}, against"):
        if axis not in axes:
            raise InputError(f"{where}: against names '{axis}', which is no axis of the grid")
    runs = [
        _run({**shared, **settings}, point, seed, data, where)
        for seed in seeds
        for point, settings in points
    ]
    return Grid(name, tuple(runs), against)


def _points(found: Mapping[str, Any], where: str) -> Iterator[tuple[Settings, Settings]]:
    """Yield the points of a grid: their place by axis, and their settings."""
    settings = _object(found.get("settings", {}), f"{where}, settings")
    variants = _object(found.get("variants", {"": {}}), f"{where}, variants")
    axes = {axis: values for axis, values in settings.items() if isinstance(values, list)}
    for values in itertools.product(*axes.values()):
        place = dict(zip(axes, values))
        for name, own in variants.items():
            own = _object(own, f"{where}, variant '{name}'")
            point = {**place, "variant": name} if name else place
            yield point, {**settings, **place, **own}


def _run(settings: Settings, point: Settings, seed: int, data: Data, where: str) -> Run:
    described = ", ".join(f"{axis} {value}" for axis, value in point.items())
    place = f"{where}, {described}" if described else where
    for name in OWN:
        if name in settings:
            raise InputError(f"{place}: '{name}' is set by the study itself; leave it out")
    if not data.whole and not ("epochs" in settings and "model" in settings):
        raise InputError(f"{place}: a part of a data set has no recipe; say model and epochs")
    checked = check_values({**settings, "seed": seed}, place)
    try:
        # The data set's own recipe, whatever is taken of it.
        resolve(Config(**checked, dataset=data.dataset))
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    whole = {**settings, "dataset": data.name, "seed": seed}
    text = json.dumps(whole, sort_keys=True)
    return Run(hashlib.sha256(text.encode()).hexdigest()[:12], whole, tuple(point.items()), seed)


def _object(
    found: Any, where: str, known: tuple[str, ...] | None = None, needed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a JSON object after a look at its names."""
    if not isinstance(found, dict):
        raise InputError(f"{where} should be an object, found {type(found).__name__}")
    for name in found if known else ():
        if name not in known:
            raise InputError(f"{where}: unknown name '{name}'{nearest(name, known)}")
    for name in needed:
        if name not in found:
            raise InputError(f"{where}: '{name}' is missing")
    return found
