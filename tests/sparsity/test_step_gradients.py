"""Blocks grow by the gradient that the optimizer saw, whatever the loop is like.

Every loop here ends a step with the gradient of one batch; the reference is a plain loop of one
backward pass a step on the same batches, whose blocks must be the same after every update.
"""

import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparse_engine import DynamicSparsity, sparsify
from sparse_engine.layers.base import SparseLayer

STEPS, INTERVAL = 7, 3


class Net(nn.Module):
    """Two sparse layers, the second of which may be recomputed in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 16, 3, padding=1), nn.Linear(16 * 16, 8)
        self.recompute: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 2, 4, 4] to [N, 8]."""
        x = self.conv(x).tanh().flatten(1)
        if self.recompute is None:
            return self.head(x)
        return checkpoint(self.head, x, use_reentrant=self.recompute)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def plain(model, optimizer, dynamic, x, y):
    loss(model, x, y).backward()
    optimizer.step()
    optimizer.zero_grad()
    return dynamic.step()


def topology_first(parts: int) -> Callable:
    def step(model, optimizer, dynamic, x, y):
        for own_x, own_y in zip(x.chunk(parts), y.chunk(parts)):
            (loss(model, own_x, own_y) / parts).backward()
        updated = dynamic.step()
        optimizer.step()
        optimizer.zero_grad()
        return updated

    return step


def cleared_last(model, optimizer, dynamic, x, y):
    optimizer.zero_grad(set_to_none=False)
    loss(model, x, y).backward()
    optimizer.step()
    return dynamic.step()


def accumulated(parts: int) -> Callable:
    def step(model, optimizer, dynamic, x, y):
        for own_x, own_y in zip(x.chunk(parts), y.chunk(parts)):
            (loss(model, own_x, own_y) / parts).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=parts == 2)
        return dynamic.step()

    return step


def in_every_micro_batch(model, optimizer, dynamic, x, y):
    """As loops do whose optimizer decides itself when to step."""
    for number, (own_x, own_y) in enumerate(zip(x.chunk(2), y.chunk(2)), 1):
        (loss(model, own_x, own_y) / 2).backward()
        if number == 2:
            optimizer.step()
            optimizer.zero_grad()
        updated = dynamic.step()
    return updated


def thrown_away(to_none: bool) -> Callable:
    def step(model, optimizer, dynamic, x, y):
        (1e6 * model(x).sum()).backward()
        model.zero_grad(set_to_none=to_none)
        return plain(model, optimizer, dynamic, x, y)

    return step


def cancelled(model, optimizer, dynamic, x, y):
    for sign in (1, -1):
        (sign * model(x).sum()).backward()
    return plain(model, optimizer, dynamic, x, y)


def of_another_network(model, optimizer, dynamic, x, y):
    """As a generator's step passes through its discriminator, before and after its own step."""
    noise = torch.zeros_like(x, requires_grad=True)
    (1e6 * model(x + noise).sum()).backward()
    optimizer.zero_grad()
    loss(model, x, y).backward()
    optimizer.step()
    (1e6 * model(x + noise).sum()).backward()
    updated = dynamic.step()
    optimizer.zero_grad()
    return updated


def by_hand(model, optimizer, dynamic, x, y):
    parameters = list(model.parameters())
    for p, g in zip(parameters, torch.autograd.grad(loss(model, x, y), parameters)):
        p.grad = g
    optimizer.step()
    return dynamic.step()


def in_a_closure(model, optimizer, dynamic, x, y):
    def closure():
        optimizer.zero_grad()
        value = loss(model, x, y)
        value.backward()
        return value

    optimizer.step(closure)
    return dynamic.step()


def scaled(model, optimizer, dynamic, x, y):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss(model, x, y)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1e3)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return dynamic.step()


def recomputed(reentrant: bool) -> Callable:
    def step(model, optimizer, dynamic, x, y):
        model.recompute = reentrant
        return plain(model, optimizer, dynamic, x, y)

    return step


LOOPS = {
    "cleared at the start": cleared_last,
    "2 micro-batches": accumulated(2),
    "16 micro-batches": accumulated(16),
    "in every micro-batch": in_every_micro_batch,
    "a pass thrown away": thrown_away(True),
    "a pass set to zero": thrown_away(False),
    "passes that cancel": cancelled,
    "passes of another network": of_another_network,
    "torch.autograd.grad": by_hand,
    "a closure": in_a_closure,
    "GradScaler and clipping": scaled,
    "checkpoint, reentrant": recomputed(True),
    "checkpoint": recomputed(False),
}


def made(rule: str, optimizer: Callable = torch.optim.SGD, **arguments):
    torch.manual_seed(0)
    model = Net()
    more = {"granet": {"start_sparsity": 0.4}, "snfs": {"headroom": 0.25}}.get(rule, {})
    sparsify(model, 0.7, "uniform", (4, 4), **more)
    trained = optimizer(model.parameters(), lr=0.1)
    dynamic = DynamicSparsity(
        model,
        trained,
        rule,
        INTERVAL,
        0.5,
        stop=None if rule != "granet" else 0.9,
        total_steps=STEPS,
        schedule="constant",
        **arguments,
    )
    return model, trained, dynamic


def masks(model: nn.Module) -> list[Tensor]:
    return [m.layout.mask() for m in model.modules() if isinstance(m, SparseLayer)]


def trained(loop: Callable, rule: str = "rigl", **arguments) -> list[list[Tensor]]:
    """Return the blocks after every step."""
    model, optimizer, dynamic = made(rule, **arguments)
    found = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 2, 4, 4, generator=generator)
        loop(model, optimizer, dynamic, x, torch.arange(16) % 8)
        found.append(masks(model))
    return found


@pytest.mark.parametrize("name", LOOPS)
def test_blocks_are_those_of_a_plain_loop(name):
    assert all_equal(trained(LOOPS[name]), trained(plain))


@pytest.mark.parametrize("rule", ["granet", "set", "snfs"])
def test_other_rules_see_the_same(rule):
    expected = trained(plain, rule)
    assert not all_equal(expected[:1], expected[-1:])
    for loop in (accumulated(2), thrown_away(True)):
        assert all_equal(trained(loop, rule), expected)


def test_where_topology_comes_first_the_gradient_at_hand_counts():
    assert all_equal(trained(topology_first(4)), trained(topology_first(1)))


@pytest.mark.parametrize("rule", ["rigl", "snfs"])
def test_a_promise_of_one_pass_changes_nothing_but_memory(rule):
    assert all_equal(trained(plain, rule, accumulate=False), trained(plain, rule))


class SharpnessAware(torch.optim.Optimizer):
    """SAM (Foret et al. 2021): the gradient of a second pass, at weights moved by the first."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure) -> None:
        """Take both passes."""
        moved = {}
        with torch.enable_grad():
            closure()
        for p in (p for group in self.param_groups for p in group["params"]):
            moved[p] = 30 * p.grad
            p.add_(moved[p])
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p, step in moved.items():
            p.sub_(step)
        self.base_optimizer.step()
        self.zero_grad()


def test_the_second_pass_of_sharpness_aware_minimisation_counts():
    def whole(model, optimizer, dynamic, x, y):
        optimizer.step(lambda: loss(model, x, y).backward())
        return dynamic.step()

    def in_parts(model, optimizer, dynamic, x, y):
        def closure():
            for own_x, own_y in zip(x.chunk(4), y.chunk(4)):
                (loss(model, own_x, own_y) / 4).backward()

        optimizer.step(closure)
        return dynamic.step()

    found = [trained(loop, optimizer=SharpnessAware) for loop in (whole, in_parts)]
    assert all_equal(*found)
    assert not all_equal(found[0], trained(plain))


def test_dense_gradients_are_held_in_armed_steps_alone():
    model, optimizer, dynamic = made("rigl")
    probes = []
    for step in range(1, STEPS + 1):
        armed = step % INTERVAL == 0
        loss(model, torch.randn(8, 2, 4, 4), torch.arange(8)).backward()
        for layer in (model.conv, model.head):
            assert layer.is_collecting == armed
            if armed:
                assert layer.probe.gradient.shape == layer.layout.shape
                probes.append(weakref.ref(layer.probe))
        optimizer.step()
        dynamic.step()
        optimizer.zero_grad()
        assert all(probe() is None for probe in probes)


def all_equal(first: list[list[Tensor]], second: list[list[Tensor]]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(first, second) for a, b in zip(x, y))
