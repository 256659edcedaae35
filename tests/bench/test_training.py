"""The report on training steps at tiny sizes: its rows, and its refusal of wrong results."""

import csv
import sys

import pytest
import torch

from bench import ensemble, training
from bench.report.records import COLUMNS
from bench.speed import prediction
from bench.speed.correctness import WrongResult
from bench.speed.layer_check import check_layers
from bench.speed.networks import NETWORKS, TINY, network_of
from bench.speed.steps import Step
from bench.speed.variant import Case, Contender
from sparse_engine.errors import InputError
from sparse_engine.layers.modules import SparseConv2d

PHASES = {"step", "forward", "backward", "optimizer"}


def run(monkeypatch, folder, module, *flags: str) -> list[dict[str, str]]:
    """Run a command at tiny size and return the rows of its CSV."""
    arguments = ["report", "--tiny", "--rounds", "2", "--out", str(folder), *flags]
    monkeypatch.setattr(sys, "argv", arguments)
    module.main()
    (path,) = folder.glob("cpu-*.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_training_steps(monkeypatch, tmp_path, capsys):
    rows = run(monkeypatch, tmp_path, training)
    assert tuple(rows[0]) == COLUMNS
    found = {row["contender"]: set() for row in rows}
    for row in rows:
        found[row["contender"]].add(row["phase"])
        assert float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert float(row["step_error"]) < 1e-2
        assert bool(row["error"]) == (row["contender"] in ("auto", "gemm", "masked"))
        assert float(row["error"] or 0) < 1e-4
        assert row["device"].startswith("CPU")
    updated = PHASES | {"armed step", "topology update"}
    names = ("dense", "gemm", "masked", "mask-multiply")
    assert found == {**dict.fromkeys(names, PHASES), "auto": updated}
    steps = {row["contender"]: row for row in rows if row["phase"] == "step"}
    # The state of blocks falls with density; masks need the dense one's.
    state = {name: float(row["state_mb"]) for name, row in steps.items()}
    assert state["gemm"] < 0.25 * state["dense"] == 0.25 * state["mask-multiply"]
    assert steps["gemm"]["label"] == "sparse"
    assert steps["gemm"]["kernel_share"] == "1"
    assert steps["masked"]["label"] == steps["mask-multiply"]["label"] == "dense"
    assert steps["masked"]["kernel_share"] == "0"
    promised = float(steps["gemm"]["flops_ratio"])
    assert promised == pytest.approx(float(steps["gemm"]["density"]), abs=0.05)
    assert "EDST, M = 3" in capsys.readouterr().out


def test_a_wrong_gradient_gives_no_row(monkeypatch, tmp_path, capsys):
    right = Step.backward

    def wrong(self):
        right(self)
        if self.name == "gemm":
            self.model.blocks[1].conv1.values.grad.mul_(1.1)

    monkeypatch.setattr(Step, "backward", wrong)
    rows = run(monkeypatch, tmp_path, training, "--contenders", "gemm", "masked")
    assert {row["contender"] for row in rows} == {"dense", "masked"}
    assert "gemm: WrongResult: blocks.1.conv1 is off by 1.0e-01" in capsys.readouterr().out


def test_a_layer_that_is_a_little_wrong_gives_no_row(monkeypatch):
    step = Step(Case(TINY, 0.8, "uniform", "16x16"), "gemm", "cpu")
    assert check_layers(step) < 1e-5
    layer, right = step.model.blocks[1].conv1, SparseConv2d.forward
    monkeypatch.setattr(
        SparseConv2d, "forward", lambda self, x: right(self, x) * (1.001 if self is layer else 1)
    )
    with pytest.raises(WrongResult, match=r"conv1 .* is off by 1.0e-03, .* \(3 of "):
        check_layers(step)
    assert check_layers(Step(Case(TINY), "dense", "cpu")) is None


def test_what_cannot_run_here_gives_no_row(monkeypatch, tmp_path, capsys):
    contenders = ["gemm captured", "triton", "gemm sideways"]
    rows = run(monkeypatch, tmp_path, training, "--contenders", *contenders)
    assert {row["contender"] for row in rows} == {"dense"}
    said = capsys.readouterr().out
    assert "Unavailable: only what runs on a CUDA GPU can be captured" in said
    assert "BackendError: backend 'triton' needs a CUDA GPU" in said
    assert "'gemm sideways' is unknown" in said


def test_a_captured_step_is_one_phase_and_checked(monkeypatch, tmp_path, capsys):
    def capture(self, function, *inputs):
        function(*inputs)
        self.replay = function

    monkeypatch.setattr(Contender, "capture", capture)
    rows = run(monkeypatch, tmp_path, training, "--contenders", "masked captured")
    assert [row["phase"] for row in rows if row["contender"] == "masked captured"] == ["step"]
    monkeypatch.setattr(Step, "optimize", lambda self: self.optimizer.zero_grad(set_to_none=False))
    rows = run(monkeypatch, tmp_path / "wrong", training, "--contenders", "masked captured")
    assert rows == []
    assert "is off by 1.0e+00" in capsys.readouterr().out


def test_masks_keep_the_weights_at_zero():
    step = Step(Case(TINY, 0.8, "uniform", "16x16"), "mask-multiply", "cpu")
    step.run()
    layout = step.layouts["blocks.1.conv1"]
    weight = step.model.blocks[1].conv1.weight
    grid = weight.view(layout.shape[0] // 16, 16, -1, 16, 3, 3)
    assert torch.equal(grid.abs().sum((1, 3)) > 0, layout.mask())


def test_bad_input_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="unknown model"):
        network_of("wrm28-10")
    for flags in (["--networks", "wrm28-10"], ["--blocks", "64"]):
        for module in (training, ensemble):
            monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path), *flags])
            with pytest.raises(SystemExit, match=r"error: .*(did you mean|such as 32x32)"):
                module.main()
    assert list(tmp_path.iterdir()) == []
    assert network_of("wrn16-2").image == (3, 32, 32)


@pytest.mark.parametrize("name", ["vit-layer", "mlp-4096"])
def test_networks_of_linear_layers_are_all_layers(name):
    model = NETWORKS[name].make()
    with torch.device("meta"):
        x = torch.empty(2, *NETWORKS[name].image)
    assert model.to("meta")(x).shape == (2, 10)


def test_rows_of_ensembles(monkeypatch, tmp_path):
    contenders = ("gemm", "masked", "gemm grouped", "masked grouped", "masked vmapped")
    rows = run(monkeypatch, tmp_path, ensemble, "--contenders", *contenders)
    assert {row["contender"] for row in rows} == {"dense", *contenders}
    for row in rows:
        assert row["label"] == ("sparse" if "gemm" in row["contender"] else "dense")
        assert row["phase"] == prediction.PHASE
        assert float(row["error"]) < 1e-3
        members = 1 if row["contender"] == "dense" else 3
        assert float(row["flops_ratio"]) == pytest.approx(members * float(row["density"]), abs=0.1)
        assert row["dense_ms"]


def test_only_dense_tickets_are_vmapped(monkeypatch, tmp_path, capsys):
    rows = run(monkeypatch, tmp_path, ensemble, "--contenders", "gemm vmapped")
    assert {row["contender"] for row in rows} == {"dense"}
    assert "Unavailable: only masked tickets" in capsys.readouterr().out


def test_a_wrong_ensemble_gives_no_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(prediction, "fold", lambda model, pairs: model.train())
    rows = run(monkeypatch, tmp_path, ensemble, "--contenders", "masked")
    assert rows == []
    assert "WrongResult: probabilities is off by" in capsys.readouterr().out
