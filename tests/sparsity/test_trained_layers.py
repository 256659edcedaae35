"""Blocks move only in layers that are trained, and only by gradients that are finite."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_engine import DynamicSparsity, sparsify
from sparse_engine.layers.base import SparseLayer

RULES = ["rigl", "set", "snfs"]


def network(*widths: int, rule: str = "rigl") -> nn.Sequential:
    torch.manual_seed(0)
    layers = [m for c, o in pairwise(widths) for m in (nn.Linear(c, o), nn.Tanh())]
    model = nn.Sequential(*layers[:-1])
    sparsify(model, 0.5, "uniform", (4, 4), headroom=0.25 if rule == "snfs" else 0.0)
    return model


def masks(model: nn.Module) -> list[Tensor]:
    return [m.layout.mask() for m in model.modules() if isinstance(m, SparseLayer)]


class Loop:
    """A loop of steps of interval 2; moved() tells which layers' blocks have changed since."""

    def __init__(self, model: nn.Module, optimizers, rule: str, **options) -> None:
        options = {"interval": 2, "drop": 0.5, "schedule": "constant", **options}
        self.model, self.optimizers = model, optimizers
        self.dynamic = DynamicSparsity(model, optimizers, rule, **options)
        self.before = masks(model)

    def step(self, scale: float = 1.0) -> bool:
        x = torch.randn(16, self.model[0].in_features)
        y = self.model(x)
        (scale * F.cross_entropy(y, x[:, : y.shape[1]].argmax(1))).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad()
        return self.dynamic.step()

    def moved(self) -> list[bool]:
        """Take two steps, the second of which is an update; see what it did."""
        self.step()
        self.step()
        after = masks(self.model)
        found = [not a.equal(b) for a, b in zip(self.before, after)]
        self.before = after
        return found


@pytest.mark.parametrize("rule", RULES)
def test_layers_are_unfrozen_one_by_one(rule):
    model = network(32, 32, 32, 16, rule=rule)
    for layer in (model[0], model[2]):
        layer.requires_grad_(False)
    values = model[0].values.detach().clone()
    loop = Loop(model, [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)], rule)
    assert loop.moved() == [False, False, True]
    assert loop.dynamic.last_update == {"0": "not trained", "2": "not trained", "4": "updated"}
    model[2].requires_grad_(True)
    assert loop.moved() == [False, True, True]
    assert model[0].values.equal(values)
    model[0].requires_grad_(True)
    model[4].requires_grad_(False)
    assert loop.moved() == [True, True, False]


@pytest.mark.parametrize("rule", RULES)
def test_layers_get_their_optimizers_late(rule):
    """In a group added later, and in an optimizer that nobody has told of."""
    model = network(32, 32, 32, 16, rule=rule)
    first = torch.optim.Adam(model[4].parameters(), lr=0.01)
    loop = Loop(model, [first], rule)
    assert loop.moved() == [False, False, True]
    first.add_param_group({"params": model[2].parameters()})
    assert loop.moved() == [False, True, True]
    second = torch.optim.Adam(model[0].parameters(), lr=0.01)
    loop.optimizers = [first, second]
    for _ in range(3):
        ids = model[0].block_ids.clone()
        assert loop.moved() == [True, True, True]
        grown = model[0].block_ids != ids
        assert not second.state[model[0].values]["exp_avg"][grown].any()


@pytest.mark.parametrize("rule", RULES)
def test_a_model_may_be_frozen_at_first(rule):
    model = network(32, 32, 16, rule=rule)
    model.requires_grad_(False)
    head = nn.Linear(16, 8)
    whole = nn.Sequential(model, head)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    dynamic = DynamicSparsity(whole, optimizer, rule, 2, 0.5)
    before = masks(whole)
    for step in range(8):
        if step == 4:
            assert all(map(torch.equal, masks(whole), before))
            model.requires_grad_(True)
            optimizer.add_param_group({"params": model.parameters()})
        whole(torch.randn(8, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        dynamic.step()
    assert not any(map(torch.equal, masks(whole), before))


class Drops(nn.Module):
    """Layers that take part in some steps, in none, or without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.never = nn.Linear(32, 32), nn.Linear(32, 32)
        self.fixed, self.head = nn.Linear(32, 32), nn.Linear(32, 16)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            x = self.fixed(x)
        return self.head(x + self.often(x) if self.calls % 4 else x)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_layers_that_took_no_part_keep_their_blocks(rule, to_none):
    torch.manual_seed(0)
    model = Drops()
    sparsify(model, 0.5, "uniform", (4, 4), headroom=0.25 if rule == "snfs" else 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamic = DynamicSparsity(model, optimizer, rule, 2, 0.5, schedule="constant")
    for step in range(1, 13):
        before = masks(model)
        model(torch.randn(16, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
        assert dynamic.step() == (step % 2 == 0)
        same = [a.equal(b) for a, b in zip(before, masks(model))]
        assert same == [bool(step % 2 or step % 4 == 0), True, True, bool(step % 2)]
    assert dynamic.last_update["never"] == "took no part in the step"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_grad_scaler_leaves_out_is_no_update(rule, fused):
    model = network(32, 32, 16, rule=rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    dynamic = DynamicSparsity(model, optimizer, rule, 2, 0.5, schedule="constant")
    for step in range(1, 7):
        before = masks(model)
        loss = model(torch.randn(16, 32)).square().mean()
        scaler.scale(loss).backward()
        if step == 4:  # in one layer alone, whose scores are finite
            model[2].bias.grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        # A fused optimizer leaves it out on the device, where nobody hears of it: the step counts.
        updates = (2, 6) if fused else (2, 5)
        updated = dynamic.step()
        same = [a.equal(b) for a, b in zip(before, masks(model))]
        assert (updated, *same) == (step in updates, step not in updates, step not in updates)
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("topology_first", [False, True])
def test_scores_that_are_not_finite_change_nothing(topology_first):
    model = network(32, 32, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    dynamic = DynamicSparsity(model, optimizer, "rigl", 2, 0.5, schedule="constant")
    before, values = masks(model), [p.detach().clone() for p in model.parameters()]
    for step in (1, 2):
        loss = model(torch.randn(16, 32)).square().mean()
        (loss * (math.nan if step == 2 else 1.0)).backward()
        for call in (dynamic.step, optimizer.step)[:: 1 if topology_first else -1]:
            call()
        optimizer.zero_grad()
    assert all(map(torch.equal, masks(model), before))
    assert dynamic.last_update == dict.fromkeys("02", "gradient not finite")
    assert [v.shape for v in values] == [p.shape for p in model.parameters()]


def test_new_blocks_are_unmoved_by_the_old_ones_gradient():
    model = network(32, 32, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    dynamic = DynamicSparsity(model, optimizer, "set", 1, 0.5, schedule="constant")
    for _ in range(3):
        ids = [model[n].block_ids.clone() for n in (0, 2)]
        model(torch.randn(16, 32)).square().mean().backward()
        assert dynamic.step()
        optimizer.step()
        optimizer.zero_grad()
        for n, old in zip((0, 2), ids):
            new = model[n].values[model[n].block_ids != old]
            assert len(new)
            assert not new.any()


def test_where_no_step_is_seen_a_recorded_one_is_suspected(monkeypatch):
    model = network(32, 32, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamic = DynamicSparsity(model, optimizer, "set", 2)
    before = masks(model)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert [dynamic.is_armed, dynamic.step(), dynamic.is_armed] == [False, False, True]
    dynamic.step()
    with pytest.warns(UserWarning, match=r"CUDA graph.*dynamic\.is_armed"):
        dynamic.step()
    monkeypatch.undo()
    assert all(map(torch.equal, masks(model), before))


def test_a_pass_that_was_set_to_zero_is_no_part_in_the_step():
    torch.manual_seed(0)
    model = Drops()
    sparsify(model, 0.5, "uniform", (4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dynamic = DynamicSparsity(model, optimizer, "rigl", 2, 0.5, schedule="constant")
    for _ in range(2):
        before = masks(model)
        for model.calls in (0, 3):  # the second time without `often`
            optimizer.zero_grad(set_to_none=False)
            model(torch.randn(16, 32)).square().mean().backward()
        optimizer.step()
        dynamic.step()
    assert [a.equal(b) for a, b in zip(before, masks(model))] == [True, True, True, False]
