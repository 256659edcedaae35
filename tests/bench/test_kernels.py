"""The kernel benchmark's harness at tiny sizes: its rows, and its refusal of wrong results."""

import csv
import sys

import pytest

from bench import kernels

pytestmark = pytest.mark.usefixtures("triton_backend")


def run(monkeypatch, folder, *flags: str) -> list[dict[str, str]]:
    """Run the command and return all rows of its CSV."""
    monkeypatch.setattr(sys, "argv", ["kernels", "--tiny", "--out", str(folder), *flags])
    monkeypatch.setattr(kernels, "TINY", (kernels.TINY[-1],))
    kernels.main()
    with (folder / "kernels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_have_what_a_figure_is_quoted_with(monkeypatch, tmp_path, capsys):
    rows = run(monkeypatch, tmp_path)
    assert {row["provider"] for row in rows} == {"dense", "triton"}
    assert {row["pass"] for row in rows} == set(kernels.PASSES)
    for row in rows:
        assert None not in row.values()
        assert float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert float(row["error"]) < kernels.LARGEST_ERROR
        assert row["torch"]
        assert row["commit"]
    assert len(run(monkeypatch, tmp_path)) == 2 * len(rows)  # appended, one heading


def test_tuned_rows_say_so(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(kernels, "tune_conv2d", lambda *a: asked.append(a[0].shape) or {})
    rows = run(monkeypatch, tmp_path, "--tune")
    assert {row["provider"] for row in rows} == {"dense", "triton tuned"}
    assert asked == [(128, 64, 1, 1)]


def test_a_wrong_result_gives_no_row(monkeypatch, tmp_path, capsys):
    real = kernels.sparse_passes

    def wrong(problem, order):
        passes = real(problem, order)
        return {**passes, "forward": lambda: passes["forward"]() * 1.1}

    monkeypatch.setattr(kernels, "sparse_passes", wrong)
    rows = run(monkeypatch, tmp_path)
    assert "forward" not in {row["pass"] for row in rows if row["provider"] == "triton"}
    assert "is wrong by" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["kernels", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        kernels.main()
