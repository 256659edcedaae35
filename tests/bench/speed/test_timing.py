"""Variants take turns, the clock is read between phases; a GPU's passes are cold replays."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from bench.speed import timing
from bench.speed.timing import Clock, in_turn, quantile, ratios, speeds


def test_variants_take_turns_and_phases_add_up():
    ticks, order = itertools.count(), []
    clock = Clock(lambda: float(next(ticks)), lambda a, b: b - a, lambda: None)

    def phase(name):
        return lambda: order.append(name)

    variants = {
        "a": {"forward": phase("a1"), "backward": phase("a2")},
        "b": {"step": phase("b")},
    }
    times = in_turn(variants, 3, clock, warm_up=1)
    assert order == ["a1", "a2", "b"] * 4
    assert times["a"] == {"step": [2.0] * 3, "forward": [1.0] * 3, "backward": [1.0] * 3}
    assert times["b"] == {"step": [1.0] * 3}
    assert list(times["a"]) == ["step", "forward", "backward"]  # as rows are written


def test_quantiles_are_interpolated():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 1.0], 0.2) == pytest.approx(0.2)
    assert quantile([5.0], 0.8) == 5.0
    columns = speeds([1.0, 2.0, 3.0], 8e12, 0.25)
    times = {"n": 3, "p20_ms": 1400, "p50_ms": 2000, "p80_ms": 2600}
    assert columns == pytest.approx(
        {**times, "flops_ratio": 0.25, "tflops": 1.0, "dense_tflops": 4.0}
    )
    assert speeds([1.0], 0.0, 0.25)["tflops"] is None


def test_ratios_are_of_the_same_round():
    assert ratios([1.0, 4.0], [2.0, 8.0]) == {"ratio_p20": 0.5, "ratio_p80": 0.5}


class FakeGpu:
    """A GPU whose clock moves by what runs on it: 100 s for a flush, and so on."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, []

    def run(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.order.append(name)

    def event(self, enable_timing: bool):
        assert enable_timing
        fake = self

        class Event:
            def record(self) -> None:
                self.at = fake.now

            def elapsed_time(self, other) -> float:
                return 1e3 * (other.at - self.at)

        return Event()


@pytest.fixture
def fake_gpu(monkeypatch):
    fake = FakeGpu()

    def empty(size, dtype, device):
        assert (size * dtype.itemsize, device) == (timing.FLUSH, "cuda")
        return SimpleNamespace(zero_=lambda: fake.run("flush", 100.0))

    monkeypatch.setattr(timing, "torch", SimpleNamespace(empty=empty, int8=torch.int8, cuda=fake))
    fake.Event, fake.synchronize = fake.event, lambda: fake.order.append("wait")
    return fake


def test_cold_passes_take_turns_behind_a_flush(fake_gpu):
    passes = {name: lambda n=name: fake_gpu.run(n, float(ord(n))) for name in "abc"}
    times = timing.cold(passes, 6)
    assert times == {name: pytest.approx([ord(name)] * 6) for name in "abc"}
    assert fake_gpu.order.pop() == "wait"  # once, behind everything
    assert set(fake_gpu.order[::2]) == {"flush"}
    rounds = [tuple(fake_gpu.order[1::2][3 * n : 3 * n + 3]) for n in range(6)]
    assert {tuple(sorted(found)) for found in rounds} == {("a", "b", "c")}
    assert len(set(rounds)) > 2


def test_the_buffer_covers_the_largest_l2():
    assert timing.FLUSH >= 2 * 126 * 2**20  # a B200's


def test_passes_are_warmed_up_and_then_captured(monkeypatch):
    said = []

    def record(function):
        said.append("recorded")
        return lambda: said.append("replayed"), function()

    def refuse():
        if "recorded" in said:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(timing.cuda_graph, "record", record)
    monkeypatch.setattr(timing.cuda_graph, "on_side_stream", lambda f: said.append("side") or f())
    found = timing.replays({"good": lambda: said.append("ran"), "bad": refuse})
    assert said[:8] == ["side", "ran"] * 3 + ["recorded", "ran"]
    found["good"]()
    assert said[-1] == "replayed"
    assert isinstance(found["bad"], RuntimeError)
