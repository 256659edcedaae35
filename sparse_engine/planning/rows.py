"""What a study has found of each training, one line of rows.csv each. Imports no torch.

`python -m bench.study FILE --write-plan` writes the file from the study's CSV, where every line is
a run: here seeds are put together, and differences to the dense network are paired by seed.
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from sparse_engine.config.values import check_values
from sparse_engine.errors import InputError
from sparse_engine.methods.registry import method_named

PACKAGED = Path(__file__).with_name("rows.csv")


@dataclass(frozen=True)
class Row:
    """One training of a study, over its seeds.

    model: the study's, which the dense network is; network: this training's, perhaps narrower.
    settings: what tells this training from the others, as of Config, besides network and epochs.
    dense_epochs: of the dense run that all are compared with.
    n: seeds; accuracy: their mean, in [0, 1]; deviation: their standard deviation.
    difference: mean difference in accuracy to the dense run, paired by seed; error: its standard
        error over seeds.
    dataset, pixels, images: its data, by the name that the trainer knows, how wide, and how many it
        trained on; batch_size: images a step; device, dtype: what it ran on.
    """

    study: str
    model: str
    network: str
    settings: dict[str, Any]
    epochs: int
    dense_epochs: int
    n: int
    accuracy: float
    deviation: float
    difference: float
    error: float
    nll: float
    ece: float
    dataset: str
    pixels: int
    images: int
    batch_size: int
    device: str
    dtype: str

    @property
    def is_dense(self) -> bool:
        """Whether it is one dense network of the study's width, however long it trained."""
        return self.settings == {"method": "dense"} and self.network == self.model

    @property
    def length(self) -> float:
        """Its epochs over those of the dense run."""
        return self.epochs / self.dense_epochs

    @property
    def steps(self) -> int:
        """How many steps it trained for."""
        return self.images // self.batch_size * self.epochs


_KINDS = get_type_hints(Row)
COLUMNS = tuple(_KINDS)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file.

    Raises:
        InputError: it is not there, is no such file, or has no row.
    """
    where = f"rows '{path}'"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names, lines = tuple(reader.fieldnames or ()), list(reader)
    except FileNotFoundError:
        raise InputError(f"{where} does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{where} cannot be read: {error}") from None
    if names != COLUMNS:
        raise InputError(f"{where} has other columns than bench.study --write-plan writes")
    if not lines:
        raise InputError(f"{where} has no row yet, so there is nothing to choose by")
    return [_row(cells, f"{where}, line {number}") for number, cells in enumerate(lines, 2)]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a file of rows in place of what is there."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _text(value) for name, value in asdict(row).items()})


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _row(cells: dict[str, str], where: str) -> Row:
    values: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        try:
            # A short line has None at its end.
            values[name] = (json.loads if name == "settings" else kind)(cells[name] or "")
        except ValueError:
            raise InputError(f"{where}: {name} cannot be {cells[name]!r}") from None
    if None in (*cells, *cells.values()):
        raise InputError(f"{where} has not {len(COLUMNS)} cells")
    row = Row(**values)
    whole = min(row.epochs, row.dense_epochs, row.n, row.pixels, row.images, row.batch_size) >= 1
    numbers = (row.accuracy, row.deviation, row.difference, row.error, row.nll, row.ece)
    if not (whole and all(map(math.isfinite, numbers)) and row.error >= 0):
        raise InputError(f"{where}: counts are 1 or more, figures finite, errors not negative")
    if not isinstance(row.settings, dict) or "method" not in row.settings:
        raise InputError(f"{where}: settings should be an object that names a method")
    check_values(row.settings, where)
    method_named(row.settings["method"])
    return row
