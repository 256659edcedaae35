"""Recordings: one that fails leaves nothing behind; a step that is recorded has fresh nodes."""

import contextlib
import gc
import weakref

import pytest
import torch
from nodes import mark, marks
from small_steps import cross_entropy, network_for
from tape import use_tapes

from sparse_engine.training import cuda_graph
from sparse_engine.training.cuda_graph import Repeated, captured, record
from sparse_engine.training.finite import FiniteGuard
from sparse_engine.training.step import TrainingStep

ENDED = "operation failed due to a previous error during capture"


class FakeCuda:
    """Streams, one random number generator and one allocator, as torch 2.11 has them."""

    def __init__(self, ends_well: bool = True) -> None:
        self.stream, self.generator_records, self.pools = "default", False, []
        self.ends_well = ends_well
        self.recorded = 0

    def graph(self, graph, pool=None, stream="recording", capture_error_mode="global"):
        return Recording(self, pool, stream)

    def randn(self) -> float:
        if self.generator_records and self.stream != "recording":
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        return 0.5


class Recording:
    """Stands in for torch.cuda.graph."""

    def __init__(self, cuda: FakeCuda, pool, stream) -> None:
        self.cuda, self.pool, self.stream = cuda, pool, stream

    def __enter__(self) -> None:
        self.before, self.cuda.stream = self.cuda.stream, self.stream
        self.cuda.generator_records = True
        self.cuda.pools += [self.pool] * bool(self.pool)

    def __exit__(self, failure, *_) -> None:
        # In the order of torch's own: nothing is restored where the recording cannot be ended.
        if failure or (self.pool and not self.cuda.ends_well):
            raise RuntimeError(ENDED)
        self.cuda.pools = [pool for pool in self.cuda.pools if pool != self.pool]
        self.cuda.generator_records = False
        self.cuda.stream = self.before
        self.cuda.recorded += 1


class Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    def reset(self) -> None:
        """Do nothing for a recording that failed, as in torch 2.11."""

    def replay(self) -> str:
        return "replayed"


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    stubs = {
        "CUDAGraph": Graph,
        "graph": fake.graph,
        "graph_pool_handle": lambda: (0, 7),
        "current_stream": lambda: fake.stream,
        "current_device": lambda: 0,
        "set_stream": lambda stream: setattr(fake, "stream", stream),
        "Stream": lambda: "another",
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(cuda_graph.torch.cuda, name, stub)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda _, p: fake.pools.remove(p))
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _, p: None)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: zeros(*a, **{**k, "device": "cpu"}))
    return fake


def test_a_recording_that_ends_well(cuda):
    replay, results = record(lambda: cuda.stream)
    assert (replay(), results) == ("replayed", "recording")
    assert (cuda.stream, cuda.recorded, cuda.pools) == ("default", 1, [])


def test_a_recording_that_fails_poisons_nothing(cuda):
    def wait():
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted") as failed:
        record(wait)
    assert failed.value.__context__ is None
    assert (cuda.stream, cuda.pools) == ("default", [])
    assert cuda.randn() == 0.5
    assert record(lambda: 3)[1] == 3


def test_a_recording_that_cannot_be_ended_says_why(cuda):
    cuda.ends_well = False
    with pytest.raises(RuntimeError, match=ENDED):
        record(lambda: 3)
    assert (cuda.stream, cuda.pools, cuda.randn()) == ("default", [], 0.5)


def test_an_allocator_that_is_in_order_is_left_alone(cuda, monkeypatch):
    """As in newer versions, where reset() does it, and a second time would be an error."""

    def refuse(*_):
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refuse)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", pytest.fail)
    cuda.ends_well = False
    with pytest.raises(RuntimeError, match=ENDED):
        record(lambda: 3)
    assert cuda.randn() == 0.5


def test_a_failure_holds_nothing_that_was_computed(cuda):
    class Computed:
        pass

    results = []

    def fail():
        result = Computed()
        results.append(weakref.ref(result))
        raise RuntimeError("cannot be recorded")

    gc.disable()  # no cycle may be left for it
    try:
        with contextlib.suppress(RuntimeError):
            record(fail)
        assert results[0]() is None
    finally:
        gc.enable()


def test_a_step_whose_recording_fails_goes_on_as_it_is(cuda, monkeypatch, caplog):
    """With dropout, which draws from the generator that the recording had taken."""
    monkeypatch.setattr(cuda_graph, "on_side_stream", lambda function: function())
    network = network_for(dropout=0.1)
    step = TrainingStep(network, cross_entropy, FiniteGuard(torch.device("cpu")), cuda_graph=True)
    update, calls = step._update, []

    def on_a_gpu(x, y, pair):
        if cuda.stream == "recording":
            raise RuntimeError("operation not permitted when stream is capturing")
        calls.append(cuda.randn())
        update(x, y, pair)

    monkeypatch.setattr(step, "_update", on_a_gpu)
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    for _ in range(cuda_graph.WARMUP + 2):
        step(x, y)
    assert len(calls) == cuda_graph.WARMUP + 2
    assert caplog.messages == [
        "the step runs without a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_nodes_of_the_trainers_step_are_fresh():
    """After plain steps, armed ones and an update."""
    network = network_for()
    step = TrainingStep(network, cross_entropy, FiniteGuard(torch.device("cpu")))
    network.model.train()
    loss = step.loss

    def marked(*arguments):
        value = loss(*arguments)
        mark(network.model, "on the default stream")
        return value

    step.loss = marked
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    for armed in (False, True, False):
        if armed:
            network.topology.arm()
        step(x, y)
        if armed:
            network.topology.update(0.5)
        assert marks(network.model) == set()


def test_a_cycle_holds_no_node_in_a_recording(monkeypatch):
    weight = torch.nn.Parameter(torch.ones(3))
    seen = []

    def recording(function):
        seen.append("made" in torch.autograd.graph.get_gradient_edge(weight).node.metadata)
        return lambda: None, function()

    monkeypatch.setattr(cuda_graph, "record", recording)
    monkeypatch.setattr(cuda_graph, "on_side_stream", lambda function: function())
    repeated = Repeated(lambda x: (weight.detach() * x).sum())
    for _ in range(cuda_graph.WARMUP):
        repeated(torch.ones(3))
    cycle = [(weight * 2).sum()]
    torch.autograd.graph.get_gradient_edge(weight).node.metadata["made"] = "before"
    cycle.append(cycle)
    del cycle
    repeated(torch.ones(3))
    assert seen == [False]


def test_the_tape_notices_a_number_that_is_baked_in(monkeypatch):
    """The stand-in is no use if it would not: here the rate is no tensor."""
    use_tapes(monkeypatch)
    weight, rates = torch.zeros(3), iter([1.0, 1.0, 1.0, 1.0, 5.0])
    repeated = Repeated(lambda x: weight.add_(x, alpha=next(rates)))
    for _ in range(5):
        repeated(torch.ones(3))
    assert weight.tolist() == [5.0] * 3


def test_a_captured_function_takes_new_inputs(monkeypatch):
    use_tapes(monkeypatch)
    double = captured(lambda x, y: 2 * x + y, torch.zeros(3), torch.zeros(3))
    assert not double.is_recorded
    for number in (1.0, 2.0, 3.0):
        assert double(torch.full((3,), number), torch.ones(3)).tolist() == [2 * number + 1] * 3
    assert double.is_recorded
