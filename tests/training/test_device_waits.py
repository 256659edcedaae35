"""No topology update and no bookkeeping of a step waits for a GPU, shown on tensors of one that is
not there: nothing asks for a number or copies between host and device.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparse_engine import SparseConv2d, SparseLinear
from sparse_engine.data.catalog import TABLE
from sparse_engine.data.loader import Normaliser, crop_and_flip
from sparse_engine.layers.optimizer_state import start_momenta
from sparse_engine.layers.plan import LayerPlan, with_spare_slots
from sparse_engine.models.grouped.layers import diagonal_layout
from sparse_engine.models.grouped.slices import MemberSlices
from sparse_engine.sparsity.layer_budgets import HEADROOM
from sparse_engine.sparsity.rules import RULES
from sparse_engine.sparsity.topology import Topology
from sparse_engine.training.finite import FiniteGuard, undo

GPU = torch.device("cuda")


class NoWaits(TorchDispatchMode):
    """Fails where a number is asked for, or tensors of host and device meet in one operator."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"), name
        leaves = tree_leaves((args, kwargs, out))
        devices = {t.device.type for t in leaves if isinstance(t, torch.Tensor)}
        assert len(devices) < 2, f"{name} between host and device"
        return out


@pytest.fixture
def on_gpu(monkeypatch):
    """Make tensors of a GPU that is not there; random numbers are drawn without a generator."""
    monkeypatch.setattr(Topology, "_generator", lambda *_: None)
    with FakeTensorMode(allow_non_fake_inputs=True), GPU:
        yield


def network(rule: str, taps: str = "each") -> nn.Module:
    """Return three layers, of which one is ragged and one linear."""
    made = []
    for shape in ((40, 32, 3, 3), (32, 64, 3, 3), (64, 48)):
        layout = replace(
            LayerPlan.full("", shape, (16, 16), taps=taps), active=18 if len(shape) == 4 else 6
        ).random()
        layout = with_spare_slots(layout, HEADROOM if rule == "snfs" else 0.0)
        if len(shape) == 4:
            made.append(SparseConv2d(shape[1], shape[0], 3, layout=layout))
        else:
            made.append(SparseLinear(shape[1], shape[0], layout=layout))
    return nn.Sequential(*made)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "static"])
@pytest.mark.parametrize(("taps", "cover"), [("each", False), ("all", False), ("row", True)])
def test_a_topology_update(rule, taps, cover, on_gpu, monkeypatch):
    """SNFS alone reads one number a layer, which its documentation says."""
    even = lambda layers, *_: dict.fromkeys(layers, 1.0)  # noqa: E731
    monkeypatch.setattr("sparse_engine.sparsity.topology.contributions", even)
    model = network(rule, taps)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    start_momenta(optimizer)
    topology = Topology(model, optimizer, rule, cover=cover)
    for layer in model:
        layer.final_active = 9 if layer.layout.group > 1 else 4
    with NoWaits():
        topology.arm()
        for layer in model if topology.needs_gradient else ():
            layer._probe.scores = torch.rand(layer.layout.total)
        topology.update(0.3, 0.5)
    assert topology.updates == 1


def test_dense_gradients_that_others_have_changed(on_gpu):
    layout = replace(LayerPlan.full("", (40, 64), (16, 16)), active=5).random()
    layer = SparseLinear(64, 40, layout=layout)
    with NoWaits():
        layer.collect(accumulate=True)
        for _ in range(2):
            layer.probe._returned[7] = torch.rand(40, 64, 1, 1)
            layer.values.grad = torch.rand(5, 16, 16)
            assert layer.probe.gradient is not None
        layer.probe.add_scores(layer.probe.take())
    assert layer.collected.shape == (layer.layout.total,)


def test_what_a_step_does_besides(on_gpu):
    """The guard, the images of a batch, and the layout of members that train as one."""
    guard = FiniteGuard(GPU, scaling=True, allowed=3)
    buffers, gradients = [torch.rand(3)], [torch.rand(4), torch.rand(2, 3)]
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    shifts, flips = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    layouts = [
        replace(LayerPlan.full("", (32, 32, 3, 3), (16, 16)), active=9).random().to(GPU)
        for _ in range(2)
    ]
    normalise = Normaliser(TABLE["cifar10"], GPU)
    with NoWaits():
        guard.judge(torch.rand(()), gradients)
        undo(buffers, [torch.rand(3)], guard.found)
        guard.adapt()
        normalise(crop_and_flip(images, shifts, flips, TABLE["cifar10"]))
        diagonal_layout(layouts, MemberSlices(32, 32, False), 32)


def test_it_is_seen_where_something_waits(on_gpu):
    flags = torch.zeros(4, dtype=torch.bool)

    def assigned() -> None:
        flags[torch.zeros(2, dtype=torch.int64)] = True

    waits = (
        assigned,
        lambda: bool(flags.any()),
        flags.cpu,
        lambda: torch.ones(2, device="cpu").to(GPU),
    )
    for wait in waits:
        with pytest.raises((AssertionError, DataDependentOutputException)), NoWaits():
            wait()
