"""Training loops of many kinds, up to the step of the optimizer: each leaves a gradient.

Each is called as loop(model, weights): a network of this file and the weights of its three layers,
stored as blocks or dense.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

X = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 4


class Net(nn.Module):
    """A convolution, a linear layer used three times, and a head that may be left out."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.shared = nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)
        self.reentrant = None

    def forward(self, x):
        x = torch.tanh(self.conv(x)).flatten(1)
        if self.reentrant is None:
            x = self._twice(x)
        else:
            x = checkpoint(self._twice, x, use_reentrant=self.reentrant)
        return self.head(torch.tanh(self.shared(x)))

    def _twice(self, x):
        return torch.tanh(self.shared(torch.tanh(self.shared(x))))


def loss_of(model, rows=slice(None)):
    return F.cross_entropy(model(X[rows]), Y[rows])


def micro_batches(model, weights):
    for start in range(0, 8, 2):
        (loss_of(model, slice(start, start + 2)) / 4).backward()


def thrown_away(model, weights):
    model(X).sum().backward()
    model.zero_grad()
    loss_of(model).backward()


def thrown_away_as_zeros(model, weights):
    (model(X).sum() * 7).backward()
    model.zero_grad(set_to_none=False)
    loss_of(model, slice(4)).backward()
    loss_of(model, slice(4, 8)).backward()


def thrown_away_by_hand(model, weights):
    (model(X) * float("inf")).sum().backward()
    for weight in weights:
        weight.grad = None
    loss_of(model).backward()


def infinities_become_zeros(model, weights):
    (model(X) * float("inf")).sum().backward()
    model.zero_grad(set_to_none=False)
    loss_of(model).backward()


def passes_that_cancel(model, weights):
    model(X).sum().backward()
    (-model(X).sum()).backward()


def sharpness_aware(model, weights):
    """SAM: the second pass counts; the step away is kept within the blocks that both have."""
    loss_of(model).backward()
    model.zero_grad()
    with torch.no_grad():
        model.head.bias += 0.5
    loss_of(model).backward()
    with torch.no_grad():
        model.head.bias -= 0.5


def adversarial(model, weights):
    """Another network's loss through this one leaves gradients, which are thrown away later."""
    other = X.clone().requires_grad_()
    model(other).sum().backward()
    model.zero_grad()
    loss_of(model).backward()
    model(X.flip(0)).logsumexp(1).mean().backward()


def assigned(model, weights):
    found = torch.autograd.grad(loss_of(model), weights)
    for weight, gradient in zip(weights, found):
        weight.grad = gradient


def added_by_hand(model, weights):
    for number in range(4):
        loss = loss_of(model, slice(2 * number, 2 * number + 2))
        found = torch.autograd.grad(loss, weights)
        for weight, gradient in zip(weights, found):
            if weight.grad is None:
                weight.grad = gradient / 4
            else:
                weight.grad += gradient / 4
    loss_of(model).backward()


def tasks_weighted(model, weights):
    tasks = [torch.autograd.grad(loss_of(model, slice(n, None, 2)), weights) for n in (0, 1)]
    for weight, first, second in zip(weights, *tasks):
        weight.grad = 0.3 * first - 2 * second


def returned_and_ignored(model, weights):
    """VQGAN: gradients for a weight between losses are looked at, and no more."""
    loss = loss_of(model)
    for part in (loss, 3 * loss, -loss):
        torch.autograd.grad(part, weights, retain_graph=True)
    loss.backward()
    torch.autograd.grad(loss_of(model), weights)


def named_inputs(model, weights):
    loss_of(model).backward(inputs=list(weights), retain_graph=True)
    loss_of(model, slice(3)).backward(inputs=list(weights))
    x = X.clone().requires_grad_()
    model(x).sum().backward(inputs=[x])


def gradient_penalty(model, weights):
    """WGAN-GP: the gradient of the input is part of the loss."""
    x = X.clone().requires_grad_()
    out = model(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    ((slope.flatten(1).norm(dim=1) - 1).square().mean() * 3 + out[:, 0].mean()).backward()


def third_order(model, weights):
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
    again.square().sum().backward()


def hessian_vector(model, weights):
    """Of the input's gradient along a direction, by torch.autograd.grad, and assigned."""
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(lambda _: model(x)), x, create_graph=True)
    found = torch.autograd.grad((slope * X.flip(0)).sum(), weights)
    for weight, gradient in zip(weights, found):
        weight.grad = gradient


def hessian_of_weights(model, weights):
    """Times the weights themselves; the first gradients lead to the second, and count for none."""
    first = torch.autograd.grad(loss_of(model), weights, create_graph=True)
    along = sum((g * w.detach()).sum() for g, w in zip(first, weights))
    for weight, gradient in zip(weights, torch.autograd.grad(along, weights)):
        weight.grad = gradient


def gradient_norm(model, weights):
    """The norm of the weights' gradient is part of the loss; of blocks that both have."""
    loss = loss_of(model)
    first = torch.autograd.grad(loss, weights, create_graph=True)
    norm = sum((g * (w != 0)).square().sum() for g, w in zip(first, weights))
    (loss + norm).backward()


def meta_step(model, weights):
    """MAML: a step is taken, within the blocks that both have, and differentiated through."""
    named = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    first = torch.autograd.grad(loss_of(model), list(named.values()), create_graph=True)
    stepped = {n: p - g * (p != 0) for (n, p), g in zip(named.items(), first)}
    loss_of(lambda x: functional_call(model, stepped, (x,))).backward()


def graph_kept(model, weights):
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    loss.backward(create_graph=True)


def clipped(model, weights):
    loss_of(model).backward()
    for weight, factor in zip(weights, (0.25, 3.0, 0.5)):
        weight.grad *= factor
    loss_of(model).backward()


def weight_read(model, weights):
    for _ in range(2):
        penalty = sum(m.weight.sin().square().sum() for m in (model.conv, model.shared))
        (loss_of(model) + 0.1 * penalty).backward()
    (found,) = torch.autograd.grad(model.head.weight.cos().sum(), weights[2])
    weights[2].grad += found


def closure(model, weights):
    """LBFGS calls back several times, and starts anew each time."""

    def evaluate():
        model.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    torch.optim.LBFGS([model.head.bias], max_iter=3).step(evaluate)


def checkpointed(reentrant):
    def run(model, weights):
        model.reentrant = reentrant
        micro_batches(model, weights)

    return run


def layer_left_out(model, weights):
    loss_of(model).backward()
    model.zero_grad()
    model.conv(X).sum().backward()


def under_no_grad(model, weights):
    with torch.no_grad():
        model(X)
    with torch.inference_mode():
        model(X)


def hooked(model, weights):
    """What hooks of others make of a gradient counts, whoever came first."""
    loss_of(model).backward()
    weights[0].register_hook(lambda grad: 2 * grad)
    weights[1].register_post_accumulate_grad_hook(halve)
    loss_of(model, slice(3)).backward()


def halve(weight):
    weight.grad *= 0.5


LOOPS = [
    *(micro_batches, thrown_away, thrown_away_as_zeros, thrown_away_by_hand),
    *(infinities_become_zeros, passes_that_cancel, sharpness_aware, adversarial),
    *(assigned, added_by_hand, tasks_weighted, returned_and_ignored, named_inputs),
    *(gradient_penalty, third_order, hessian_vector, hessian_of_weights, gradient_norm),
    *(meta_step, graph_kept, clipped, weight_read, closure, checkpointed(True)),
    *(checkpointed(False), layer_left_out, under_no_grad, hooked),
]
