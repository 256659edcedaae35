"""Which optimizers train which layers is looked at anew, and every real step is told of once."""

import gc
import weakref
from collections import defaultdict

import pytest
import torch
from torch import nn, optim
from torch.optim import optimizer as torch_optimizer

from sparse_engine.errors import InputError
from sparse_engine.optimizers.owners import Owners

SLOTS = torch.tensor([0, 3])


def layers(count=3):
    torch.manual_seed(0)
    return {f"layer{n}": nn.Parameter(torch.randn(5, 2, 4)) for n in range(count)}


def backward(parameters):
    for p in parameters:
        p.grad = torch.randn_like(p) if p.requires_grad else None


def step(optimizer, parameters):
    backward(parameters)
    optimizer.step()


def watched(optimizers, parameters):
    owners, told = Owners(optimizers, parameters), []
    owners.on_step = told.append
    return owners, told


@pytest.fixture(scope="module", autouse=True)
def collecting_is_quick():
    """Let the collector look at what these tests make alone."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_hook_is_left():
    yield
    gc.collect()
    assert not torch_optimizer._global_optimizer_post_hooks


def test_groups_are_looked_at_anew():
    parameters = layers()
    first, second, third = parameters.values()
    second.requires_grad_(False)
    optimizer = optim.SGD([first, second], lr=0.1)
    owners, told = watched(optimizer, parameters)
    assert owners.trained() == {"layer0"}
    assert owners.of(third) == []
    second.requires_grad_(True)
    optimizer.add_param_group({"params": [third]})
    assert owners.trained() == set(parameters)
    assert owners.of(third) == [optimizer]
    assert owners.names_in(optimizer) == list(parameters)
    optimizer.param_groups.pop(0)
    assert owners.trained() == {"layer2"}
    step(optimizer, parameters.values())
    assert told == [optimizer]
    assert owners.steps == 1


def test_an_optimizer_that_nobody_gave_is_noticed_when_it_steps_and_not_kept():
    parameters = layers()
    first, second, _ = parameters.values()
    owners, told = watched(optim.SGD([first], lr=0.1), parameters)
    late, other = optim.Adam([second]), optim.Adam(layers().values())
    assert owners.trained() == {"layer0"}
    for _ in range(2):
        for optimizer in (late, other):
            step(optimizer, optimizer.param_groups[0]["params"])
    assert told == [late, late]
    assert owners.trained() == {"layer0", "layer1"}
    other.add_param_group({"params": [parameters["layer2"]]})
    step(other, parameters.values())
    assert owners.of(parameters["layer2"]) == [other]
    owners.reset_slots(second, SLOTS)
    assert not late.state[second]["exp_avg"][SLOTS].any()
    assert late.state[second]["exp_avg"][1].all()
    told.clear()
    del optimizer, late
    gc.collect()
    assert owners.of(second) == []


def test_state_of_two_optimizers_begins_anew_unless_told():
    parameters = layers(1)
    (p,) = parameters.values()
    both = [optim.Adam([p]), optim.Rprop([p], lr=0.02)]
    owners = Owners(both, parameters)
    for optimizer in both:
        step(optimizer, [p])
        step(optimizer, [p])
    before = [optimizer.state[p][key].clone() for optimizer, key in zip(both, KEYS)]
    for unless, starts in ((True, None), (False, (0.0, 0.02))):
        owners.reset_slots(p, SLOTS, torch.tensor(unless))
        for number, (optimizer, key) in enumerate(zip(both, KEYS)):
            found = optimizer.state[p][key]
            kept = before[number].clone()
            if starts:
                kept[SLOTS] = starts[number]
            assert torch.equal(found, kept)


KEYS = ("exp_avg_sq", "step_size")


class Wrapper(optim.Optimizer):
    """An Optimizer around another, with hooks of its own."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner

    def step(self):
        self.inner.step()


class Holder:
    """No Optimizer, with one inside and slow weights."""

    def __init__(self, optimizer):
        self.optimizer, self.state = optimizer, defaultdict(dict)

    def step(self):
        self.optimizer.step()


class Subclass(optim.Adam):
    """A step that calls that of the class above, whose hooks run too."""

    def step(self, closure=None):
        return super().step(closure)


def unwrapped(optimizer):
    return optimizer


@pytest.mark.parametrize("kind", [optim.Adam, Subclass])
@pytest.mark.parametrize("wrapper", [unwrapped, Wrapper, Holder])
@pytest.mark.parametrize("is_given", [True, False])
def test_one_step_is_told_of_once(kind, wrapper, is_given):
    parameters = layers()
    inner = kind(parameters.values())
    optimizer = wrapper(inner)
    owners, told = watched(optimizer if is_given else None, parameters)
    scheduler = optim.lr_scheduler.StepLR(inner, 1)
    for _ in range(3):
        step(optimizer, parameters.values())
        scheduler.step()
    assert told == [inner] * 3
    assert owners.of(parameters["layer1"]) == [inner]
    assert owners.trained() == set(parameters)


def test_a_failed_step_is_not_told_of_and_the_next_one_is():
    parameters = layers()
    optimizer = Subclass(parameters.values())
    _owners, told = watched(optimizer, parameters)
    backward(parameters.values())
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert told == []
    optimizer.step()
    assert told == [optimizer]


def test_optimizers_that_step_in_backward():
    parameters = layers()
    optimizers = {p: optim.SGD([p], lr=0.1, momentum=0.9) for p in parameters.values()}

    def step_now(p):
        optimizers[p].step()
        p.grad = None

    for p in parameters.values():
        p.register_post_accumulate_grad_hook(step_now)
    for given in (list(optimizers.values()), None):
        owners, told = watched(given, parameters)
        sum(p.square().sum() for p in parameters.values()).backward()
        assert sorted(map(id, told)) == sorted(map(id, optimizers.values()))
        assert owners.trained() == set(parameters)
        told.clear()


def test_a_scaler_says_which_fused_steps_change_nothing():
    parameters = layers(1)
    (p,) = parameters.values()
    optimizer = optim.SGD([p], lr=0.1, fused=True)
    owners, left_out = Owners(optimizer, parameters), []
    owners.on_step = lambda optimizer: left_out.append(bool(optimizer.found_inf))
    scaler = torch.amp.GradScaler("cpu")
    for factor in (1, torch.inf, 1):
        p.grad = None
        scaler.scale(p.sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert left_out == [False, True, False]


# torch 2.11 itself, where it compiles an optimizer:
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_compiled_step_is_told_of():
    parameters = layers()
    optimizer = optim.SGD(parameters.values(), lr=0.1)
    _owners, told = watched(optimizer, parameters)
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(3):
        backward(parameters.values())
        compiled()
    assert told == [optimizer] * 3


class Listener:
    def __init__(self, owners):
        self.owners, owners.on_step = owners, self.hear
        self.heard = 0

    def hear(self, optimizer):
        self.heard += 1


def test_nothing_is_kept_alive():
    parameters = layers()
    optimizer = optim.SGD(parameters.values(), lr=0.1)
    gc.collect()
    gc.disable()
    try:
        listener = Listener(Owners(optimizer, parameters))
        step(optimizer, parameters.values())
        assert listener.heard == 1
        references = [weakref.ref(one) for one in (optimizer, listener, parameters["layer0"])]
        assert len(torch_optimizer._global_optimizer_post_hooks) == 1
        del listener, optimizer, parameters
        assert [reference() for reference in references] == [None] * 3
        assert not torch_optimizer._global_optimizer_post_hooks
    finally:
        gc.enable()


def test_what_cannot_train_sparse_layers_is_refused():
    parameters = layers()
    lbfgs = optim.LBFGS(parameters.values())
    for given in (lbfgs, [optim.SGD(parameters.values()), Holder(lbfgs)]):
        with pytest.raises(InputError, match=r"^LBFGS cannot train sparse layers"):
            Owners(given, parameters)
    with pytest.raises(InputError, match="expected a torch optimizer or a list of them, found Lin"):
        Owners(nn.Linear(1, 1), parameters)
    owners = Owners(None, parameters)
    backward(parameters.values())
    with pytest.raises(InputError, match=r"^LBFGS cannot train sparse layers"):
        lbfgs.step(lambda: 0.0)
    assert Owners(lbfgs, layers()).trained() == owners.trained() == set()
