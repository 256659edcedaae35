"""What is measured, how often, and what is kept; the clock itself is replaced."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.errors import RunFailure
from sparse_engine.layers.candidates import dense_layers
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.workload import layer_calls
from sparse_engine.runs.model import dense_model
from sparse_engine.sparsity import layer_times
from sparse_engine.sparsity.layer_times import measure_layer_times, measured_counts
from sparse_kernels import timing
from sparse_kernels.measurements import FOLDER, timings
from sparse_kernels.timing import CoreWait

CPU = torch.device("cpu")
IMAGE = (3, 12, 12)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))


@pytest.fixture
def clock(monkeypatch):
    """Calls take 1, 2, 3, ... seconds; return what was called."""
    calls = []

    def once(run, on_gpu):
        calls.append(run)
        run()
        return float(len(calls))

    monkeypatch.setattr(timing, "once", once)
    return calls


class Twice(nn.Module):
    """A network with two equal layers, one that is called twice, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.second = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.head = nn.Linear(16, 10)
        self.unused = nn.Linear(16, 16)

    def forward(self, x):
        x = self.second(self.first(self.stem(x)))
        return self.head(x[:, :, ::2].mean((2, 3))) + self.head(x.mean((2, 3)))


def measure(model, batch=4, dtype=torch.float32, block=(8, 8), taps="each"):
    names = [name for name, _ in dense_layers(model)]
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in names}
    plans = [LayerPlan.full(name, shape, block, taps) for name, shape in shapes.items()]
    problems = layer_calls(model, IMAGE, batch, names)
    return measure_layer_times(plans, problems, model.to("meta"), CPU, dtype), plans


def test_problems_are_the_calls_of_a_training_step():
    found = layer_calls(Twice(), IMAGE, 5, ["stem", "first", "second", "head", "unused"])
    [stem], [first] = found["stem"], found["first"]
    assert (stem.sizes, stem.positions, stem.input_gradient) == ((5, 3, 12, 12), 5 * 144, False)
    assert (first.sizes, first.input_gradient) == ((5, 16, 12, 12), True)
    assert found["second"] == [first]
    assert [call.sizes for call in found["head"]] == [(5, 16)] * 2
    assert found["unused"] == []


def test_problems_of_members_are_those_they_train_on():
    config = resolve(Config(method="mimo", dataset="digits", members=3, batch_repetition=2))
    with torch.device("meta"):
        model = dense_model(config, TABLE["digits"])
    names = {name for name, _ in dense_layers(model)}
    found = layer_calls(model, (1, 8, 8), 10, names)
    assert {call.sizes[0] for calls in found.values() for call in calls} == {20}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_layers_are_measured_once_and_calls_add_up(dtype, clock):
    curves, plans = measure(Twice(), dtype=dtype)
    different = ("stem", "first", "head")
    counts = {plan.name: measured_counts(plan) for plan in plans}
    assert len(clock) == (layer_times.ROUNDS + 1) * sum(len(counts[n]) for n in different)
    assert curves["first"] == curves["second"]
    assert curves["unused"].seconds == (0.0,) * len(counts["unused"])
    assert all(curve.active == counts[name] for name, curve in curves.items())
    kept = json.loads(timings("layer-times", CPU).path.read_text())
    [head] = [seconds for key, seconds in kept.items() if key.startswith("Linear(in_features=16")]
    assert list(curves["head"].seconds) == [2 * s for s in head]


def test_what_was_measured_is_not_measured_again(clock):
    first, _ = measure(Twice())
    taken = len(clock)
    assert measure(Twice())[0] == first
    assert len(clock) == taken
    for change in ({"batch": 5}, {"dtype": torch.bfloat16}, {"taps": "all"}, {"block": (16, 8)}):
        measure(Twice(), **change)
        assert len(clock) > taken, change
        taken = len(clock)
    assert measure(Twice())[0] == first


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": ["x"]}'])
def test_a_broken_file_is_measured_again(content, clock, caplog):
    path = timings("layer-times", CPU).path
    path.write_text(content)
    first, _ = measure(Twice())
    assert "cannot be used" in caplog.text
    assert measure(Twice())[0] == first
    assert json.loads(path.read_text())


def test_a_folder_that_cannot_be_written_is_told(clock, monkeypatch, caplog, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file"))
    measure(Twice())
    assert "what was measured is not kept" in caplog.text


def test_a_cpu_takes_few_images_for_many(monkeypatch):
    """A part of the batch is timed, and its time multiplied: here each call takes a second."""
    monkeypatch.setattr(timing, "once", lambda run, on_gpu: run() and 1.0)
    monkeypatch.setattr(layer_times, "CPU_POSITIONS", 2 * 144)
    curves, _ = measure(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1)), batch=8)
    assert set(curves["0"].seconds) == {4.0}


def test_every_density_runs_its_own_blocks(monkeypatch):
    """Forward and gradients of the layer asked for: its parameters' and, where needed, x's."""
    found = []

    def once(run, on_gpu):
        found.append([tuple(gradient.shape) for gradient in run()])
        return 1.0

    monkeypatch.setattr(timing, "once", once)
    _, [stem, later] = measure(
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1, bias=False)), batch=2
    )
    blocks = {shapes[0][0] for shapes in found if shapes[0][1:] == (8, 8)}
    assert blocks == {*measured_counts(stem)[:-1], *measured_counts(later)[:-1]}
    assert [(16, 16, 1, 1), (2, 16, 12, 12)] in found
    assert [(16, 3, 3, 3), (16,)] in found


@pytest.mark.parametrize("taps", ["each", "row", "all"])
def test_counts_go_from_one_group_to_all(taps):
    plan = LayerPlan.full("a", (64, 64, 3, 3), (16, 16), taps)
    counts = measured_counts(plan)
    assert (counts[0], counts[-1]) == (plan.group, plan.total)
    assert all(a < b for a, b in itertools.pairwise(counts))
    assert all(count % plan.group == 0 for count in counts)
    assert measured_counts(replace(plan, shape=(16, 16), total=1, active=1)) == (1,)


def test_times_that_other_programs_disturb_are_not_kept(clock, monkeypatch):
    """Once or twice they are taken again; after that nothing is decided by them."""
    shares = iter((0.5, 0.5, 0.0, 0.5, 0.5, 0.5))
    monkeypatch.setattr(CoreWait, "share", lambda wait: next(shares))
    with pytest.raises(RunFailure, match=r"layers: the .* 50% of their time.*OMP_NUM_THREADS=1"):
        measure(Twice())
    assert len(timings("layer-times", CPU).entries) == 1
