"""The report on layers at tiny sizes: its rows, and its refusal of wrong results."""

import csv

import pytest

from bench import kernels
from bench.report.records import Records
from bench.speed import problems


def run(monkeypatch, folder, *flags: str) -> list[dict[str, str]]:
    """Run the command and return all rows of its CSV."""
    monkeypatch.setattr(kernels, "TINY", (kernels.TINY[-1],))
    kernels.main(["--tiny", "--out", str(folder), *flags])
    with (folder / "cpu-kernels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("triton_backend")
def test_rows_have_what_a_figure_is_quoted_with(monkeypatch, tmp_path):
    rows = run(monkeypatch, tmp_path)
    assert {row["contender"] for row in rows} == {"dense", "triton rows"}
    assert {row["phase"] for row in rows} == set(kernels.PASSES)
    for row in rows:
        assert None not in row.values()
        assert float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert float(row["error"]) < 1e-3
        assert row["torch"]
        assert row["commit"]


@pytest.mark.usefixtures("triton_backend")
def test_tuned_rows_say_so(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(kernels, "tune_conv2d", lambda *a: asked.append(a[0].shape) or {})
    rows = run(monkeypatch, tmp_path, "--tune")
    assert {row["contender"] for row in rows} == {"dense", "triton rows tuned"}
    assert asked == [(128, 64, 1, 1)]


def test_a_cpu_has_its_own_paths(monkeypatch, tmp_path):
    rows = run(monkeypatch, tmp_path)
    labels = {row["contender"]: row["label"] for row in rows}
    assert labels == {"dense": "dense", "native rows": "sparse", "masked rows": "dense"}


def test_a_wrong_result_gives_no_row(monkeypatch, tmp_path, capsys):
    real = kernels.sparse_passes

    def wrong(problem, order, backend):
        passes = real(problem, order, backend)
        return {**passes, "forward": lambda: passes["forward"]() * 1.1}

    monkeypatch.setattr(kernels, "sparse_passes", wrong)
    rows = run(monkeypatch, tmp_path)
    assert "forward" not in {row["phase"] for row in rows if row["contender"] != "dense"}
    assert "native rows forward: ArithmeticError: it is wrong by 1.0e-01" in capsys.readouterr().out


def test_a_peer_that_cannot_run_costs_one_line(monkeypatch, tmp_path, capsys):
    def absent():
        raise ImportError("No module named 'stk'")

    def right(problem, scale=1.0):
        expected = problem.x @ problem.dense.T
        return "peer", lambda: problem.x @ problem.dense.T * scale, expected

    def three(problem):
        return [absent, lambda: right(problem), lambda: ("bad", *right(problem, 2.0)[1:])]

    monkeypatch.setattr(kernels, "peers", three)
    rows = run(monkeypatch, tmp_path)
    assert [r["phase"] for r in rows if r["contender"] == "peer"] == ["forward"]
    assert "bad" not in {row["contender"] for row in rows}
    said = capsys.readouterr().out
    assert "no row: linear 32x64: a peer: ImportError: No module named 'stk'" in said
    assert "bad forward: ArithmeticError" in said


@pytest.fixture
def subject(tmp_path, monkeypatch):
    """Return a subject that times layers as on a GPU, on fake replays."""
    found = kernels.Kernels(Records(tmp_path / "a.csv", {"run": "now"}), "cpu")
    times = found._times

    def as_on_a_gpu(*arguments):
        found.device = "cuda"
        try:
            return times(*arguments)
        finally:
            found.device = "cpu"

    monkeypatch.setattr(found, "_times", as_on_a_gpu)
    monkeypatch.setattr(kernels, "cold", lambda passes, n: {key: [1e-3] * n for key in passes})
    return found


@pytest.mark.parametrize(
    ("refused", "kept"), [("native rows forward", 8), ("dense weight gradient", 6)]
)
def test_what_cannot_be_captured_gives_no_row(refused, kept, subject, monkeypatch, capsys):
    def replays(passes):
        error = RuntimeError("operation not permitted when stream is capturing")
        return {key: error if " ".join(key) == refused else run for key, run in passes.items()}

    monkeypatch.setattr(kernels, "replays", replays)
    subject.run(problems.make_problem(kernels.TINY[-1], (32, 32), 0.5, "cpu"))
    assert len(subject.records.rows) == kept  # of nine; without a dense pass nobody has one
    assert refused not in {f"{r['contender']} {r['phase']}" for r in subject.records.rows}
    assert {row["n"] for row in subject.records.rows} == {str(kernels.GPU_ROUNDS)}
    assert f"no row: linear 32x64 {refused} not captured: RuntimeError" in capsys.readouterr().out
