"""The rows of a study as a file: read as they were written, or refused in one line."""

from dataclasses import asdict

import pytest
from plan_rows import EDST, row, some_rows

from sparse_engine.errors import InputError
from sparse_engine.planning.rows import COLUMNS, PACKAGED, read_rows, write_rows


def test_what_was_written_is_read(tmp_path):
    write_rows(tmp_path / "rows.csv", some_rows())
    for found, written in zip(read_rows(tmp_path / "rows.csv"), some_rows(), strict=True):
        assert asdict(found) == {
            name: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            for name, value in asdict(written).items()
        }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": "many"}, "line 2: epochs cannot be 'many'"),
        ({"n": 0}, "line 2: counts are 1 or more"),
        ({"nll": float("nan")}, "figures finite"),
        ({"error": -1.0}, "errors not negative"),
        ({"settings": "[1]"}, "settings should be an object that names a method"),
        ({"settings": "{}"}, "settings should be an object that names a method"),
        ({"settings": "{"}, "line 2: settings cannot be '{'"),
        ({"settings": {"method": "dense", "blok": 1}}, "unknown setting 'blok'"),
        ({"settings": {"method": "edts"}}, "unknown method 'edts'; did you mean 'edst'?"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, changes, message):
    path = tmp_path / "rows.csv"
    write_rows(path, [row(**changes)])
    with pytest.raises(InputError) as error:
        read_rows(path)
    assert message in str(error.value)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "rows.csv"
    with pytest.raises(InputError, match="does not exist"):
        read_rows(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has other columns"):
        read_rows(path)
    write_rows(path, [])
    with pytest.raises(InputError, match="has no row yet"):
        read_rows(path)
    write_rows(path, [row(EDST)])
    path.write_text(path.read_text().rpartition(",")[0])
    with pytest.raises(InputError, match="line 2 has not 19 cells"):
        read_rows(path)


def test_the_packages_own_file_has_the_columns():
    assert tuple(PACKAGED.read_text().splitlines()[0].split(",")) == COLUMNS
