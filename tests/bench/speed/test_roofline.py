"""The roofline by device: what is known of it, and rows that say nothing where it is not."""

import pytest

from bench import kernels
from bench.report import records
from bench.report.records import Records
from bench.speed.networks import TINY
from bench.speed.problems import Layer, make_problem
from bench.speed.roofline import H200, nearest_bound, rates_of
from bench.speed.steps import Step
from bench.speed.variant import Case, Variant
from bench.training import Training


@pytest.mark.parametrize(
    ("device", "terabytes"),
    [
        ("NVIDIA H200", 4.8),
        ("NVIDIA H100 80GB HBM3", 3.35),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB", None),
        ("CPU of some make", None),
        ("rehearsal", None),
    ],
)
def test_rates_by_name(device, terabytes):
    rates = rates_of(device)
    assert (rates and rates.memory / 1e12) == terabytes


def test_the_nearest_bound_is_the_largest_time():
    slower = rates_of("NVIDIA H100 80GB HBM3")
    assert nearest_bound(790e12, 0, 0, slower) == 1
    assert nearest_bound(0, 4.8e12, 0) == 1
    assert nearest_bound(0, 4.8e12, 0, slower) == pytest.approx(4.8 / 3.35)


@pytest.mark.parametrize("device", ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA L40S"])
def test_rows_of_steps_and_layers(device, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "device_name", lambda _: device)
    step = Step(Case(TINY, 0.8, "uniform", "16x16"), Variant("native"), "cpu")
    training = Training(Records(tmp_path / "a.csv", {"run": "now"}), "cpu")
    (row,) = training.rows(step, {"step": [1e-3]})
    expected = 1e12 * row["tflops"] / H200.tensor if "H" in device else None
    assert row["roofline"] == expected
    layer = Layer("linear 32x64", (32, 64), (), 128)
    problem = make_problem(layer, (32, 32), 0.5, "cpu")
    subject = kernels.Kernels(None, "cpu")
    found = subject._row(problem, "native rows", "forward", [1e-3], [1e-3])["roofline"]
    assert (found is not None) == ("H" in device)
    assert subject._row(problem, "masked rows", "forward", [1e-3], [1e-3])["roofline"] is None
    strips = Layer("strips", (32, 32, 3, 3), (2, 2), 2, 2, taps="row")
    problem = make_problem(strips, (32, 32), 0.5, "cpu")
    assert problem.layout.group == 3
    assert subject._row(problem, "native rows", "forward", [1e-3], [1e-3])["roofline"] is None
