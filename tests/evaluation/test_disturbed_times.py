"""What `evaluate` says of times that were taken on a busy machine."""

import pytest

from sparse_engine import evaluate


@pytest.mark.parametrize("wait", [None, 0.0, 0.4])
def test_they_are_said_to_be(wait, monkeypatch, capsys):
    """None: with --no-compare nothing was timed."""
    result = {} if wait is None else {"test_core_wait": wait}
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: result)
    monkeypatch.setattr(evaluate, "report_tables", lambda _: "tables")
    evaluate.main(["run"])
    told = "test time: the 1 threads that were timed waited for a core in 40% of their time"
    assert (told in capsys.readouterr().out) == (wait == 0.4)
