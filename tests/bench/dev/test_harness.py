"""Flags are made of their defaults, and a table's rows come one by one."""

import pytest

from bench.dev.harness import print_table
from sparse_engine.errors import InputError

DEFAULTS = {
    "rounds": 3,
    "share": 0.5,
    "names": ["a"],
    "dtype": ("fp32", "bf16"),
    "all_of_it": False,
}


def test_flags_have_the_types_of_their_defaults(capsys):
    given = []

    def rows(options):
        given.append(vars(options))
        yield ["1", "2"]

    print_table(None, ("x", "y"), rows, DEFAULTS, [])
    flags = ["--rounds", "4", "--share", "1", "--names", "b", "c", "--dtype", "bf16", "--all-of-it"]
    print_table(None, ("x", "y"), rows, DEFAULTS, flags)
    assert given[0] == {**DEFAULTS, "dtype": "fp32"}
    asked = {"rounds": 4, "share": 1.0, "names": ["b", "c"], "dtype": "bf16", "all_of_it": True}
    assert given[1] == asked
    assert capsys.readouterr().out.splitlines()[1:4] == ["| x | y |", "|---|---|", "| 1 | 2 |"]


def test_bad_input_is_one_line(capsys):
    def rows(options):
        yield ["first"]
        raise InputError("raise --time-budget")

    with pytest.raises(SystemExit, match="error: raise --time-budget"):
        print_table(None, ("x",), rows, {}, [])
    assert "| first |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        print_table(None, ("x",), rows, DEFAULTS, ["--dtype", "fp8"])
