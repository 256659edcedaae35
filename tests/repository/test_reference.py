"""The index of public names is current and whole."""

import importlib
import sys
from pathlib import Path
from typing import get_args

import pytest

import sparse_engine
import sparse_kernels
from sparse_engine.config.values import EARLIER, EARLIER_CHOICES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("reference")
    finally:
        sys.path.pop(0)


def test_the_page_is_current(reference):
    found = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert found == reference.page(), "write it anew: python docs/reference.py"
    assert found.count("`: \n") == 0, "a name without a docstring"


def test_every_public_name_is_on_it_once(reference):
    names = [name for group in reference.GROUPS for name in group.names]
    public = [*sparse_engine.__all__, *sparse_kernels.__all__]
    assert sorted(name for name in names if "." not in name) == sorted(public)
    assert len(set(names)) == len(names)
    for name in names:
        if ".integrations." not in name:  # which need other people's packages
            assert reference.found(reference.home(name)).__doc__
    assert all(get_args(reference.found(name)) for name in reference.CHOICES)


def test_earlier_names_are_on_it(reference):
    earlier = " ".join(reference.EARLIER)
    gone = [*sparse_engine._EARLIER, *EARLIER, *(choice for _, choice in EARLIER_CHOICES)]
    assert [name for name in gone if name not in earlier] == []


def test_variables_are_on_it(reference):
    code = [path for room in ("sparse_engine", "kernels") for path in (ROOT / room).rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in code)
    assert all(f'"{name}"' in text for name in reference.VARIABLES)
    assert text.count('"SPARSE_ENGINE_') == len(reference.VARIABLES)
