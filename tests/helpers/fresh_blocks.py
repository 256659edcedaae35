"""What every optimizer must do for exchanged blocks: their state is that of a fresh optimizer."""

import inspect
import random

import torch
from torch import nn

from sparse_engine.optimizers.reset import reset_slots
from sparse_engine.optimizers.wrappers import kept_aside, own_state, tensors_in, with_wrapped

SHAPE = (12, 4, 8)
SLOTS = torch.tensor([1, 5, 11])
KEPT = torch.tensor([s for s in range(SHAPE[0]) if s not in SLOTS])


def values(seed, shape=SHAPE):
    """Return values of a sparse layer."""
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def step(optimizer, parameters, seed=0, zero=False):
    """Make one step with gradients drawn from a seed, or of zeros."""
    generator = torch.Generator().manual_seed(seed)
    factor = 0 if zero else 1

    def closure():
        for p in parameters:
            p.grad = None
        noise = [torch.randn(p.shape, generator=generator) for p in parameters]
        loss = sum((p * n).sum() + (p**2).sum() / 10 for p, n in zip(parameters, noise)) * factor
        loss.backward(create_graph=getattr(optimizer, "is_second_order", False))
        return loss.detach()

    getattr(optimizer, "train", lambda: None)()
    arguments = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    if any(a.default is a.empty for a in arguments):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def state_of(optimizer, parameter):
    """Return all tensors that an optimizer and those inside it hold of a parameter, by place."""
    found = {}
    for number, one in enumerate(with_wrapped(optimizer)):
        for path, tensor in tensors_in(own_state(one, parameter)):
            found[(number, *path)] = tensor
        for place, tensor in enumerate(kept_aside(one, parameter)):
            found[number, "aside", place] = tensor
    places = {id(tensor): path for path, tensor in found.items()}
    return {path: found[path] for path in places.values()}


def copy(state):
    return {path: tensor.detach().clone() for path, tensor in state.items()}


def fresh_state_of(make, steps):
    """Return the state of an optimizer that has met only zeros: when made, and after steps."""
    parameters = [nn.Parameter(torch.zeros(SHAPE)) for _ in range(2)]
    optimizer = make(parameters)
    states = [copy(state_of(optimizer, parameters[0]))]
    for _ in range(steps):
        step(optimizer, parameters, zero=True)
        states.append(copy(state_of(optimizer, parameters[0])))
    return states


def assert_fresh(make, steps=3, tolerance=1e-7, mixed=()):
    """Check reset_slots with an optimizer.

    Args:
        make: makes the optimizer of a list of parameters.
        steps: before the reset.
        tolerance: how much the state may differ from that of a fresh optimizer after one step with
            a gradient of zero; 0.1 where that step decays it.
        mixed: keys of state over pairs of slots.

    Returns:
        The number of state tensors that have slots.
    """
    parameters = [values(0), values(1)]
    optimizer = make(parameters)
    for number in range(steps):
        step(optimizer, parameters, number)
    with torch.no_grad():
        parameters[0].index_fill_(0, SLOTS, 0)
    others = copy(state_of(optimizer, parameters[1]))
    weights = [p.detach().clone() for p in parameters]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    before = copy(state_of(optimizer, parameters[0]))
    draws, python_draws = torch.get_rng_state(), random.getstate()
    reset_slots(optimizer, parameters[0], SLOTS, unless=torch.tensor(True))
    assert_equal(before, state_of(optimizer, parameters[0]))
    reset_slots(optimizer, parameters[0], SLOTS, unless=torch.tensor(False))
    after = copy(state_of(optimizer, parameters[0]))
    for path, tensor in state_of(optimizer, parameters[0]).items():
        tensor.detach().copy_(before[path])
    reset_slots(optimizer, parameters[0], SLOTS)
    assert_equal(after, state_of(optimizer, parameters[0]))
    assert_equal(others, state_of(optimizer, parameters[1]))
    assert all(torch.equal(p, w) for p, w in zip(parameters, weights))
    assert groups == [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    assert torch.equal(draws, torch.get_rng_state())
    assert python_draws == random.getstate()
    fresh = fresh_state_of(make, steps)
    found = sum(
        assert_slots_fresh(path, before[path], tensor, fresh, tolerance)
        for path, tensor in after.items()
        if not set(path) & set(mixed)
    )
    step(optimizer, parameters)
    assert all(p.isfinite().all() for p in parameters)
    return found


def assert_slots_fresh(path, before, after, fresh, tolerance):
    """Check one tensor; return whether it has slots. No other dimension is as long as they are."""
    dimensions = [d for d, length in enumerate(after.shape) if length == SHAPE[0]]
    if not dimensions:
        assert torch.equal(before, after), path
        return False
    (d,) = dimensions
    assert torch.equal(before.index_select(d, KEPT), after.index_select(d, KEPT)), path
    own = after.index_select(d, SLOTS).double()
    known = [state[path].index_select(d, SLOTS).double() for state in fresh if path in state]
    near = known[0].isclose(own, atol=tolerance, rtol=0).all()
    assert near, (path, own.flatten()[0], known[0].flatten()[0])
    return True


def assert_equal(before, after):
    assert before.keys() == after.keys()
    for path, tensor in after.items():
        assert torch.equal(before[path], tensor), path
