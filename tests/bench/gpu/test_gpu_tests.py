"""The job that runs the GPU's tests: how many passed, which failed first, and no pytest at all."""

import importlib.util
import re

import pytest

from bench.gpu import gpu_tests

TESTS = """
import time
import pytest

pytestmark = pytest.mark.gpu

def test_right():
    pass

def test_wrong():
    assert 1 == 2, "one is not two"

def test_slow():
    time.sleep(60)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "test_some.py"
    path.write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs one\n")
    return str(path)


def test_those_that_pass_are_counted(file, capsys):
    gpu_tests.run_tests([file], "right")
    assert capsys.readouterr().out == "GPU tests: 1 passed\n"


def test_the_first_failure_is_named(file):
    with pytest.raises(gpu_tests.TestsFailed, match=r"test_some.py::test_wrong - .*one is not two"):
        gpu_tests.run_tests([file], "wrong or slow")


def test_tests_that_take_too_long_are_stopped(file, capsys):
    gpu_tests.run_tests([file], "right or slow", limit=1.5)
    assert capsys.readouterr().out == "GPU tests: 1 passed, then 2 s were over\n"


def test_no_pytest_is_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    gpu_tests.run_tests()
    assert capsys.readouterr().out == "GPU tests: left out, pytest is not installed\n"


def test_the_selection_is_there():
    text = "".join((gpu_tests.ROOT / file).read_text() for file in gpu_tests.FILES)
    names = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
    words = gpu_tests.CHOSEN.split(" or ")
    assert all(any(word in name for name in names) for word in words)
    found = [name for name in names if any(word in name for word in words)]
    for name in (
        "test_a_graph_stays_right_after_a_topology_update",
        "test_nothing_waits_for_the_device",
        "test_a_topology_update_does_not_wait_for_the_device",
        "test_another_stream_gives_the_same",
        "test_a_graph_follows_rates_and_swaps",
    ):
        assert name in found
    for word in ("sanitizer", "tuner_finds", "ten_thousand", "32_bits", "trains_what"):
        assert not [name for name in found if word in name]
