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
two grids share is made once. `"evaluation": {"severities": "3", "foreign": "cifar100"}` beside them
has the tickets of every run evaluated on corrupted images and on those of another data set, of
which as many are taken in the same size. `"projection": {"dataset": "cifar10", "batch_size": 32,
"models": {"wrn10-2": "wrn16-8"}}` has larger networks timed with the same blocks. No torch here.
"""  # noqa: E501 - the example is JSON as people write it

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from sparse_engine.config.config import Config
from sparse_engine.config.values import check_values, read_json
from sparse_engine.errors import InputError, nearest
from sparse_engine.methods.resolve import resolve

# What the study itself decides for each run.
OWN = ("dataset", "data_dir", "seed", "out", "resume", "config", "dry_run", "download")
Settings = dict[str, Any]
T = TypeVar("T")


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
        pixels = self.pixels and f"{self.pixels}px"
        return "-".join(f"{p}" for p in (self.dataset, pixels, self.train, self.test) if p)

    @property
    def whole(self) -> bool:
        """Whether it is the data set itself."""
        return self.name == self.dataset


@dataclass(frozen=True)
class Evaluation:
    """What tickets see beside the test images: corrupted ones, and those of another data set.

    severities: of corruptions, from 1 to 5, with commas; foreign: the other data set's name.
    """

    severities: str
    foreign: str


@dataclass(frozen=True)
class Projection:
    """Larger networks whose steps are timed as well: of a study's small ones, by their models.

    dataset, batch_size: of their images.
    """

    dataset: str
    batch_size: int
    models: dict[str, str]

    def of(self, settings: Settings) -> Settings:
        """Return the settings of a run of the larger network."""
        larger = {"dataset": self.dataset, "batch_size": self.batch_size}
        return {**settings, **larger, "model": self.models[settings["model"]]}


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

    def __str__(self) -> str:
        return f"{self.key} {_words(dict(self.point))}, seed {self.seed}"


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
    evaluation: Evaluation | None = None
    projection: Projection | None = None

    @property
    def foreign(self) -> Data:
        """The foreign images, as many and as wide as the study's own."""
        return replace(self.data, dataset=self.evaluation.foreign) if self.evaluation else self.data

    def runs(self) -> list[Run]:
        """Return every run once, grid by grid, each grid seed by seed."""
        return list({run.key: run for grid in self.grids for run in grid.runs}.values())


def read_study(path: Path) -> Study:
    """Return a study, every run of which has been checked.

    Raises:
        InputError: no such file, no JSON, unknown names, or settings that contradict each other.
    """
    where = f"study '{path}'"
    names = ("title", "data", "settings", "grids", "evaluation", "projection")
    study = _object(read_json(path, "study"), where, names, ("data", "grids"))
    data = _data(study["data"], f"{where}, data")
    shared = _object(study.get("settings", {}), f"{where}, settings")
    grids = _object(study["grids"], f"{where}, grids")
    read = (_grid(name, grids[name], shared, data, f"{where}, grid '{name}'") for name in grids)
    found = Study(
        path.stem,
        study.get("title", path.stem),
        data,
        shared,
        tuple(read),
        _extra(Evaluation, study.get("evaluation"), f"{where}, evaluation"),
        _extra(Projection, study.get("projection"), f"{where}, projection"),
    )
    for run in found.runs() if found.projection else ():
        if run.settings.get("model") not in found.projection.models:
            raise InputError(f"{where}, projection: no larger model of '{run.settings['model']}'")
    return found


def _extra(kind: type[T], given: Any, where: str) -> T | None:
    """Return an object that a study need not have, all of whose names are needed."""
    if given is None:
        return None
    types = get_type_hints(kind)
    for name, value in _object(given, where, tuple(types), tuple(types)).items():
        expected = get_origin(types[name]) or types[name]
        if type(value) is not expected:
            raise InputError(f"{where}: {name} should be a {expected.__name__}, found {value!r}")
    return kind(**given)


def _data(given: Any, where: str) -> Data:
    given = _object(given, where, ("dataset", "pixels", "train", "test"), ("dataset",))
    for name, value in given.items():
        kind = str if name == "dataset" else int
        if type(value) is not kind or (kind is int and value < 1):
            raise InputError(f"{where}: {name} should be a {kind.__name__}, found {value!r}")
    return Data(**given)


def _grid(name: str, given: Any, shared: Settings, data: Data, where: str) -> Grid:
    given = _object(given, where, ("settings", "variants", "seeds", "against"), ("seeds",))
    seeds = given["seeds"]
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise InputError(f"{where}: seeds should be a count or a list of numbers, found {seeds!r}")
    points = list(_points(given, where))
    against = given.get("against", {})
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


def _points(given: Mapping[str, Any], where: str) -> Iterator[tuple[Settings, Settings]]:
    """Yield the points of a grid: their place by axis, and their settings."""
    settings = _object(given.get("settings", {}), f"{where}, settings")
    variants = _object(given.get("variants", {"": {}}), f"{where}, variants")
    axes = {axis: values for axis, values in settings.items() if isinstance(values, list)}
    for values in itertools.product(*axes.values()):
        place = dict(zip(axes, values))
        for name, own in variants.items():
            own = _object(own, f"{where}, variant '{name}'")
            point = {**place, "variant": name} if name else place
            yield point, {**settings, **place, **own}


def _run(settings: Settings, point: Settings, seed: int, data: Data, where: str) -> Run:
    place = f"{where}, {_words(point)}" if point else where
    if given := [name for name in OWN if name in settings]:
        raise InputError(f"{place}: '{given[0]}' is set by the study itself; leave it out")
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


def name_of(point: tuple[tuple[str, Any], ...]) -> str:
    """Return what a place on a grid is called; nothing on a grid of one training."""
    return ", ".join(str(value) for _, value in point)


def _words(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in point.items())


def _object(
    given: Any, where: str, known: tuple[str, ...] | None = None, needed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a JSON object after a look at its names."""
    if not isinstance(given, dict):
        raise InputError(f"{where} should be an object, found {type(given).__name__}")
    for name in given if known else ():
        if name not in known:
            raise InputError(f"{where}: unknown name '{name}'{nearest(name, known)}")
    for name in needed:
        if name not in given:
            raise InputError(f"{where}: '{name}' is missing")
    return given
