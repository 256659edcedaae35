"""State of exchanged blocks becomes what an optimizer has of weights it has just met."""

import gc
import types
import weakref
from collections import defaultdict

import pytest
import torch
from fresh_blocks import KEPT, SHAPE, SLOTS, assert_fresh, copy, state_of, step, values
from torch import nn, optim
from torch.optim.optimizer import register_optimizer_step_post_hook

from sparse_engine.errors import InputError
from sparse_engine.optimizers.reset import reset_slots
from sparse_engine.optimizers.wrappers import check_supported

# Optimizer, options, number of tensors of state that have slots.
OPTIMIZERS = {
    "sgd": (optim.SGD, {"lr": 0.1}, 0),
    "sgd_nesterov": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, 1),
    "sgd_damped": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 1}, 1),
    "sgd_fused": (optim.SGD, {"lr": torch.tensor(0.1), "momentum": 0.9, "fused": True}, 1),
    "adam": (optim.Adam, {"amsgrad": True, "foreach": True}, 3),
    "adam_fused": (optim.Adam, {"lr": torch.tensor(0.1), "fused": True}, 2),
    "adamw": (optim.AdamW, {"maximize": True, "betas": [0.9, 0.99]}, 2),
    "nadam": (optim.NAdam, {}, 2),
    "radam": (optim.RAdam, {}, 2),
    "adamax": (optim.Adamax, {}, 2),
    "rmsprop": (optim.RMSprop, {"centered": True, "momentum": 0.9}, 3),
    "adagrad": (optim.Adagrad, {"initial_accumulator_value": 0.3}, 1),
    "adagrad_fused": (optim.Adagrad, {"initial_accumulator_value": 0.3, "fused": True}, 1),
    "adadelta": (optim.Adadelta, {}, 2),
    "rprop": (optim.Rprop, {"lr": 0.02}, 2),
    "asgd": (optim.ASGD, {}, 1),
    "adafactor": (optim.Adafactor, {}, 2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torch(name):
    kind, options, tensors = OPTIMIZERS[name]
    assert assert_fresh(lambda parameters: kind(parameters, **options)) == tensors


class Inner(optim.Optimizer):
    """State of many forms, and options and attributes of many kinds."""

    def __init__(self, parameters, start=0.5):
        super().__init__(
            parameters, {"lr": 0.1, "start": {"value": [start]}, "schedule": self.rate}
        )
        self.everything = [p for group in self.param_groups for p in group["params"]]
        self.update = self._update
        self.numbers = torch.Generator().manual_seed(0)
        self.calls = torch.zeros(())

    def rate(self):
        return 0.1

    @torch.no_grad()
    def step(self):
        self.calls += 1
        torch.rand(1, generator=self.numbers)
        torch.rand(1)
        for p in self.everything:
            self.update(p, self.param_groups[0]["start"]["value"][0])

    def _update(self, p, start):
        state = self.state[p]
        if not state:
            state["codes"] = torch.full_like(p, 7, dtype=torch.uint8)
            state["float8"] = torch.full_like(p, 2).to(torch.float8_e4m3fn)
            state["scale"] = torch.full_like(p[:, 0, 0], start)
            state["flat"] = torch.full_like(p.flatten(), start)
            state["across"] = [torch.full_like(p.transpose(0, 2), start)]
            state["halves"] = torch.full_like(p.flatten()[::16], start)
            state["mean"] = torch.zeros(())
            state["pairs"] = torch.eye(len(p))
            state["object"] = types.SimpleNamespace(part=torch.empty_like(p))
            state["object"].part.fill_(start)
        for path, t in state_of(self, p).items():
            if t.dtype is torch.float8_e4m3fn:
                t.copy_(t.float() + 1)
                continue
            t.add_(1 if "codes" in path else p.grad.abs().mean())
        p.sub_(p.grad, alpha=0.1)


def test_state_of_other_forms_and_attributes_of_all_kinds():
    parameters = [values(0), values(1)]
    optimizer = Inner(parameters)
    for _ in range(3):
        step(optimizer, parameters)
    weights = copy(dict(enumerate(parameters)))
    before, draws = copy(state_of(optimizer, parameters[0])), optimizer.numbers.get_state()
    reset_slots(optimizer, parameters[0], SLOTS)
    state = optimizer.state[parameters[0]]
    start = {"scale": state["scale"], "across": state["across"][0].transpose(0, 2)}
    start |= {"flat": state["flat"].view(SHAPE), "halves": state["halves"].view(SHAPE[0], -1)}
    for key, tensor in start.items():
        assert (tensor[SLOTS] == 0.5).all(), key
        assert (tensor[KEPT] != 0.5).all(), key
    assert (state["codes"][SLOTS] == 7).all()
    assert (state["codes"][KEPT] == 10).all()
    assert state["float8"].float().mean((1, 2)).tolist() == [
        2.0 if s in SLOTS else 5.0 for s in range(12)
    ]
    assert torch.equal(state["mean"], before[0, "mean"])
    assert torch.equal(state["pairs"][SLOTS], torch.eye(SHAPE[0])[SLOTS])
    assert torch.equal(state["pairs"][:, SLOTS], torch.eye(SHAPE[0])[:, SLOTS])
    assert torch.equal(state["pairs"][KEPT][:, KEPT], before[0, "pairs"][KEPT][:, KEPT])
    assert optimizer.calls == 3
    assert torch.equal(optimizer.numbers.get_state(), draws)
    assert all(torch.equal(p, weights[n]) for n, p in enumerate(parameters))
    reference = weakref.ref(optimizer)
    del optimizer, state
    gc.collect()
    assert reference() is None


def test_options_of_the_moment_count():
    parameters = [values(0), values(1)]
    optimizer = optim.Rprop([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}])
    step(optimizer, parameters)
    for rate in (0.25, 0.125):
        optimizer.param_groups[0]["lr"] = rate
        for p in parameters:
            reset_slots(optimizer, p, SLOTS)
        starts = [optimizer.state[p]["step_size"][SLOTS].unique().tolist() for p in parameters]
        assert starts == [[rate], [0.5]]
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    optimizer.param_groups[0]["lr"].data.fill_(0.75)
    reset_slots(optimizer, parameters[0], SLOTS)
    assert (optimizer.state[parameters[0]]["step_size"][SLOTS] == 0.75).all()


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.Rprop])
@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1, device="meta")])
def test_a_device_is_not_waited_for(kind, rate):
    """A tensor on the device "meta" has no values: whoever reads one gets an error."""
    p = nn.Parameter(torch.zeros(SHAPE, device="meta"))
    p.grad = torch.zeros_like(p)
    optimizer = kind([p], **({"momentum": 0.9} if kind is optim.SGD else {}))
    optimizer.param_groups[0]["lr"] = rate
    state = {"SGD": ["momentum_buffer"], "Adam": ["exp_avg", "exp_avg_sq"]}
    keys = state.get(kind.__name__, ["prev", "step_size"])
    optimizer.state[p] = {key: torch.zeros_like(p) for key in keys}
    for unless in (None, torch.tensor(True, device="meta")):
        reset_slots(optimizer, p, SLOTS.to("meta"), unless)
    versions = [t._version for t in optimizer.state[p].values()]
    assert versions == [2] * len(keys)


def test_a_view_of_another_optimizers_state_begins_at_zero():
    """As members that train as one network hold theirs."""
    p, whole = values(0), torch.ones(2 * SHAPE[0], *SHAPE[1:])
    views = types.SimpleNamespace(state={p: {"momentum_buffer": whole[SHAPE[0] :]}})
    reset_slots(views, p, SLOTS)
    assert not whole[SHAPE[0] + SLOTS].any()
    assert whole.sum() == whole.numel() - whole[SHAPE[0] + SLOTS].numel()


class SecondAdam(optim.Adam):
    """A step that calls that of the class above."""

    def step(self, closure=None):
        return super().step(closure)


def test_hooks_schedulers_and_scalers_do_not_see_a_twin():
    parameters = [values(0), values(1)]
    optimizer = SecondAdam(parameters)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu")
    step(optimizer, parameters)
    scaler.scale(parameters[0].sum()).backward()
    scaler.step(optimizer)
    scheduler.step()
    told = []
    handle = register_optimizer_step_post_hook(lambda *of: told.append(of))
    optimizer.register_step_pre_hook(lambda *of: told.append(of))
    weights = copy(dict(enumerate(parameters)))
    reset_slots(optimizer, parameters[0], SLOTS)
    assert told == []
    assert all(torch.equal(p, weights[n]) for n, p in enumerate(parameters))
    step(optimizer, parameters)
    handle.remove()
    assert len(told) > 1
    assert optimizer.state[parameters[0]]["step"] == 3


class Slow:
    """Lookahead that is no Optimizer, with slow weights where others have them."""

    def __init__(self, base_optimizer):
        self.base_optimizer, self.state, self.by_id = base_optimizer, defaultdict(dict), {}
        groups = [group["params"] for group in base_optimizer.param_groups]
        self.nested = [[p.detach().clone() for p in group] for group in groups]
        self.flat = [nn.Parameter(p.detach().clone()) for group in groups for p in group]
        for p in (p for group in groups for p in group):
            self.state[p]["slow"] = p.detach().clone()
            self.by_id[id(p)] = p.detach().clone()

    def step(self):
        self.base_optimizer.step()


class SlowOptimizer(optim.Optimizer):
    """Lookahead that is one, whose inner one lies in a list."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.inner = [optim.Rprop(self.param_groups, lr=0.02)]
        self.slow = {p: p.detach().clone() for p in parameters}

    def step(self):
        self.inner[0].step()


@pytest.mark.parametrize("kind", [Slow, SlowOptimizer])
def test_wrappers(kind):
    parameters = [values(0), values(1)]
    optimizer = kind(optim.Rprop(parameters, lr=0.02)) if kind is Slow else kind(parameters)
    for number in range(3):
        step(optimizer, parameters, number)
    others, before = (copy(state_of(optimizer, p)) for p in reversed(parameters))
    reset_slots(optimizer, parameters[0], SLOTS)
    after = state_of(optimizer, parameters[0])
    assert len(after) == 3 + (4 if kind is Slow else 1)
    for path, tensor in after.items():
        if tensor.ndim:
            start = 0.02 if "step_size" in path else 0.0
            assert (tensor[SLOTS] == start).all(), path
            assert torch.equal(tensor[KEPT], before[path][KEPT])
    assert all(
        torch.equal(t, others[path]) for path, t in state_of(optimizer, parameters[1]).items()
    )


class Odd(optim.Adam):
    """An optimizer that no twin can be made of."""

    def __init__(self, parameters, model):
        super().__init__(parameters)
        self.model = model

    def step(self, closure=None):
        assert closure is None
        for p in self.model.parameters():
            p.grad.mul_(2)
        super().step()


def test_an_optimizer_that_cannot_be_asked_begins_at_zero():
    model = nn.ParameterList([values(0), values(1)])
    optimizer = Odd(model.parameters(), model)
    step(optimizer, list(model))
    before = copy(state_of(optimizer, model[0]))
    gradients = [p.grad.clone() for p in model]
    reset_slots(optimizer, model[0], SLOTS)
    for path, tensor in state_of(optimizer, model[0]).items():
        if tensor.ndim:
            assert not tensor[SLOTS].any()
            assert torch.equal(tensor[KEPT], before[path][KEPT])
    assert all(torch.equal(p.grad, g) for p, g in zip(model, gradients))


@pytest.mark.parametrize("inside", [False, True])
def test_lbfgs_is_refused_by_name(inside):
    parameters = [values(0)]
    optimizer = optim.LBFGS(parameters)
    with pytest.raises(InputError, match=r"^LBFGS cannot train .*; give their `values` to another"):
        check_supported(Slow(optimizer) if inside else optimizer)
    check_supported(optimizer, [values(1)])
    check_supported(Slow(optim.SGD(parameters)))
