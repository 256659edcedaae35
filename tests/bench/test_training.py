"""The report on training steps at tiny sizes: its rows, and its refusal of wrong results."""

import csv

import pytest

from bench import training
from bench.report.records import COLUMNS
from bench.speed.steps import Step
from bench.speed.variant import Workload, variants

PHASES = {"step", "forward", "backward", "optimizer", "products"}


# What takes turns on a CPU, but for torch.compile, which takes half a minute.
EAGER = ("dense bf16", "slim", "auto", "native", "masked", "mask-multiply")


def rows_of(folder, *flags: str) -> list[dict[str, str]]:
    """Run the command at tiny size and return the rows of its CSV."""
    training.main(["--tiny", "--rounds", "2", "--out", str(folder), *flags])
    with (folder / "cpu-training.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_training_steps(tmp_path, capsys):
    assert set(training.ON_CPU) - set(variants(*EAGER)) == set(variants("dense compiled"))
    rows = rows_of(tmp_path, "--variants", *EAGER)
    assert tuple(rows[0]) == COLUMNS
    phases = {row["contender"]: set() for row in rows}
    for row in rows:
        phases[row["contender"]].add(row["phase"])
        assert float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert row["dtype"] == ("bf16" if row["contender"] == "dense bf16" else "fp32")
        assert float(row["step_error"]) < (0.8 if row["dtype"] == "bf16" else 1e-2)
        assert row["against"] in ("dense", "")
        assert bool(row["error"]) == (row["contender"] in ("auto", "native", "masked"))
        assert float(row["error"] or 0) < 1e-4
        assert row["device"].startswith("CPU")
    updated = PHASES | {"armed step", "topology update"}
    names = ("dense", *(name for name in EAGER if name != "auto"))
    assert phases == {**dict.fromkeys(names, PHASES), "auto": updated}
    steps = {row["contender"]: row for row in rows if row["phase"] == "step"}
    # The state of blocks falls with density; masks need the dense one's.
    state = {name: float(row["state_mb"]) for name, row in steps.items()}
    assert state["native"] < 0.25 * state["dense"] == 0.25 * state["mask-multiply"]
    assert steps["native"]["label"] == "sparse"
    assert steps["native"]["kernel_share"] == "1"
    assert steps["masked"]["label"] == steps["mask-multiply"]["label"] == "dense"
    assert steps["masked"]["kernel_share"] == "0"
    promised = float(steps["native"]["flops_ratio"])
    assert promised == pytest.approx(float(steps["native"]["density"]), abs=0.05)
    products = {row["contender"]: row["p50_ms"] for row in rows if row["phase"] == "products"}
    assert all(0 < float(ms) < float(steps[name]["p50_ms"]) for name, ms in products.items())
    # As many FLOPs as the sparse one, in the same case.
    assert float(steps["slim"]["flops_ratio"]) == pytest.approx(promised, rel=0.3)
    assert (steps["slim"]["sparsity"], steps["slim"]["label"]) == ("0.8", "dense")
    assert "EDST, M = 3" in capsys.readouterr().out


@pytest.mark.slow
def test_the_fastest_dense_network_in_fp32_is_the_measure(tmp_path):
    rows = rows_of(tmp_path, "--variants", "dense compiled", "dense bf16", "native")
    steps = {row["contender"]: row for row in rows if row["phase"] == "step"}
    fastest = min(("dense", "dense compiled"), key=lambda name: float(steps[name]["p50_ms"]))
    assert {row["against"] for row in steps.values()} == {fastest}


def test_a_wrong_gradient_gives_no_row(monkeypatch, tmp_path, capsys):
    right = Step.backward

    def wrong(self):
        right(self)
        if self.variant.kind == "native":
            self.model.blocks[1].conv1.values.grad.mul_(1.1)

    monkeypatch.setattr(Step, "backward", wrong)
    rows = rows_of(tmp_path, "--variants", "native", "masked")
    assert {row["contender"] for row in rows} == {"dense", "masked"}
    assert "native: WrongResult: blocks.1.conv1 is off by 1.0e-01" in capsys.readouterr().out


def test_what_cannot_run_here_gives_no_row(tmp_path, capsys):
    rows = rows_of(tmp_path, "--variants", "native captured", "triton", "auto grouped")
    assert {row["contender"] for row in rows} == {"dense"}
    said = capsys.readouterr().out
    assert "native captured: Unavailable: only what runs on a CUDA GPU can be captured" in said
    assert "BackendError: backend 'triton' needs a CUDA GPU" in said
    assert "auto grouped: Unavailable: training steps are neither" in said


def test_a_captured_step_is_one_phase_and_checked(monkeypatch, tmp_path, capsys):
    def record(self, function, *inputs):
        function(*inputs)
        self.replay = function

    monkeypatch.setattr(Workload, "record", record)
    rows = rows_of(tmp_path, "--variants", "masked captured")
    assert [row["phase"] for row in rows if row["contender"] == "masked captured"] == ["step"]
    monkeypatch.setattr(Step, "optimize", lambda self: self.optimizer.zero_grad(set_to_none=False))
    assert rows_of(tmp_path / "wrong", "--variants", "masked captured") == []
    assert "is off by 1.0e+00" in capsys.readouterr().out
