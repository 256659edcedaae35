"""GradientWatch: whether a gradient has arrived, as loops of several kinds leave it."""

import pytest
import torch
from torch import nn

from sparse_kernels.operators.gradient_watch import GradientWatch


def passed(weight):
    weight.square().sum().backward()


def returned(weight):
    return torch.autograd.grad(weight.square().sum(), weight)[0]


def zeroed(weight):
    passed(weight)
    weight.grad.zero_()


def thrown_away(weight):
    passed(weight)
    weight.grad = None


def assigned(weight):
    weight.grad = returned(weight)


def added(weight):
    weight.grad = torch.zeros_like(weight)
    weight.grad += returned(weight)


def assigned_in_inference_mode(weight):
    with torch.inference_mode():
        weight.grad = torch.ones(3)


def clipped(weight):
    passed(weight)
    nn.utils.clip_grad_norm_(weight, 0.1)


def inputs_named(weight):
    weight.square().sum().backward(inputs=[weight])


CASES = [
    (passed, True),
    (assigned, True),
    (added, True),
    (assigned_in_inference_mode, True),
    (clipped, True),
    (inputs_named, True),
    (returned, False),
    (thrown_away, False),
    (lambda weight: None, False),
    (lambda weight: weight.detach().sum(), False),
]


@pytest.mark.parametrize(("step", "wanted"), CASES)
@pytest.mark.parametrize("before", [passed, zeroed, thrown_away])
def test_a_gradient_of_this_step(step, wanted, before):
    """Whatever the step before has left: its gradient, zeros or nothing."""
    weight = nn.Parameter(torch.ones(3))
    watch = GradientWatch(weight)
    before(weight)
    watch.forget()
    assert not watch.took_part
    if weight.grad is not None:
        weight.grad.zero_()  # zero_grad(set_to_none=False)
    assert not watch.took_part
    step(weight)
    assert watch.took_part == wanted
    watch.note()
    assert watch.took_part == wanted
    watch.forget()
    assert not watch.took_part


def test_a_frozen_parameter_is_watched_once_it_trains():
    weight = nn.Parameter(torch.ones(3), requires_grad=False)
    watch = GradientWatch(weight)
    weight.requires_grad_()
    passed(weight)
    assert watch.took_part
    watch.attach()
    watch.attach()
    assert len(weight._backward_hooks) == 1
    watch.close()
    assert not weight._backward_hooks


def test_a_watch_that_nobody_holds_leaves_no_hooks():
    weight = nn.Parameter(torch.ones(3))
    GradientWatch(weight)
    assert not weight._backward_hooks
    assert not weight._post_accumulate_grad_hooks


class Recorder:
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def before_landing(self):
        self.told.append("before")

    def after_landing(self, is_plain):
        self.told.append(is_plain)


def test_a_listener_learns_whether_hooks_of_others_change_a_gradient():
    weight, recorder = nn.Parameter(torch.ones(3)), Recorder()
    halve = weight.register_post_accumulate_grad_hook(halved)
    watch = GradientWatch(weight, recorder)
    second = GradientWatch(weight)
    passed(weight)
    halve.remove()
    passed(weight)
    double = weight.register_hook(lambda gradient: 2 * gradient)
    passed(weight)
    double.remove()
    returned(weight)
    assert recorder.told == [*("before", False), *("before", True), *("before", False), "before"]
    assert watch.took_part
    assert second.took_part


def halved(weight):
    weight.grad *= 0.5
