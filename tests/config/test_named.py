"""The papers' configurations, by name."""

from pathlib import Path

import pytest

from sparse_engine.config.named import config_names, find_config
from sparse_engine.config.values import read_config_file
from sparse_engine.errors import InputError

NAME = "freetickets/edst-m3-wrn28-10-cifar10"
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("name", [NAME, f"{NAME}.json", f"configs/{NAME}.json"])
def test_names_with_and_without_their_ending(name):
    assert NAME in config_names()
    assert read_config_file(name)["model"] == "wrn28-10"


def test_a_file_goes_before_a_name():
    path = Path(f"{NAME}.json")
    path.parent.mkdir()
    path.write_text('{"epochs": 3}')
    assert read_config_file(str(path)) == {"epochs": 3}
    assert read_config_file(NAME)["members"] == 3


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("freetickets/edst-m3-wrn28-10-cifar11", f"did you mean '{NAME}'"),
        ("edst-m3-wrn28-10-cifar10.json", f"'{NAME}'"),
        ("zzz", "; sparse-engine configs lists those of the papers"),
    ],
)
def test_a_typo_names_the_nearest(name, hint):
    with pytest.raises(InputError) as error:
        find_config(name)
    assert str(error.value).startswith(f"config file '{name}' does not exist, nor is there one")
    assert hint in str(error.value)
