"""A run is known again by its facts; jobs that were cut off have no line."""

from bench.speed.journal import DONE, FAILED, NAME, Journal

FACTS = {"device": "NVIDIA H100", "commit": "abc"}


def test_a_run_goes_on_where_it_ended(tmp_path):
    folder = tmp_path / "new"
    first = Journal.begun(folder, FACTS, "first")
    first.note("smoke", DONE)
    first.note("bad", FAILED)
    second = Journal.begun(folder, FACTS, "second")
    assert second.run == "first"
    assert second.ended() == {"smoke", "bad"}
    assert second.ended(again=True) == {"smoke"}
    second.note("bad", DONE)
    assert second.ended(again=True) == {"smoke", "bad"}


def test_another_device_or_commit_is_another_run(tmp_path):
    Journal.begun(tmp_path, FACTS, "first").note("smoke", DONE)
    for number, change in enumerate(({"device": "NVIDIA H200"}, {"commit": "def"})):
        other = Journal.begun(tmp_path, {**FACTS, **change}, f"other {number}")
        assert other.run == f"other {number}"
        assert other.ended() == set()
    assert Journal.begun(tmp_path, FACTS, "again").run == "first"


def test_a_line_that_was_cut_off_is_no_job(tmp_path):
    journal = Journal.begun(tmp_path, FACTS, "first")
    journal.note("smoke", DONE)
    with (tmp_path / NAME).open("a") as file:
        file.write('\n{"run": "first", "job": "long", "outc')
    journal.note("steps", DONE)
    assert Journal(tmp_path, "first").ended() == {"smoke", "steps"}


def test_without_a_file_nothing_has_ended(tmp_path):
    assert Journal(tmp_path, "first").ended() == set()
    assert list(tmp_path.iterdir()) == []
