"""A row for each load and length of a pass, with all kinds of threads."""

import shutil
from argparse import Namespace

import pytest

from bench.dev import native_threads
from sparse_kernels.cpu.compiler import USUAL


@pytest.mark.skipif(not any(map(shutil.which, USUAL)), reason="needs a C++ compiler")
def test_rows():
    options = Namespace(threads=2, rounds=1, steps=1, busy=[0, 1], tiles=[3])
    rows = list(native_threads.rows(options))
    assert [row[:2] for row in rows[::2]] == [["0", "3"], ["1", "3"]]
    assert all(len(row) == len(native_threads.COLUMNS) for row in rows)
