"""DenseGradientSum against the grad of a dense weight put through the very same loop."""

import copy
import pickle
import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sparse_engine import SparseConv2d, SparseLinear, sparsify
from sparse_kernels.memory_order import in_order
from sparse_kernels.operators.reference import gather_blocks

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
        block = lambda x: torch.tanh(self.shared(torch.tanh(self.shared(x))))  # noqa: E731
        if self.reentrant is None:
            x = block(x)
        else:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(torch.tanh(self.shared(x)))


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
    micro_batches, thrown_away, thrown_away_as_zeros, thrown_away_by_hand, infinities_become_zeros,
    passes_that_cancel, sharpness_aware, adversarial, assigned, added_by_hand, tasks_weighted,
    returned_and_ignored, named_inputs, gradient_penalty, third_order, hessian_vector, graph_kept,
    clipped, weight_read, closure, checkpointed(True), checkpointed(False), layer_left_out,
    under_no_grad, hooked,
]  # fmt: skip


def pair(dtype=torch.float64):
    """Return a sparse network and the same with dense weights."""
    torch.manual_seed(0)
    sparse = Net()
    sparsify(sparse, 0.5, "uniform", (4, 8))
    layers = [sparse.conv, sparse.shared, sparse.head]
    assert all(isinstance(layer, SparseConv2d | SparseLinear) for layer in layers)
    twin = copy.deepcopy(sparse)
    for name in ("conv", "shared", "head"):
        setattr(twin, name, getattr(sparse, name).to_dense())
    return sparse.to(dtype), twin.to(dtype)


def assert_same(sparse, twin, **tolerance):
    for layer, dense in zip(
        (sparse.conv, sparse.shared, sparse.head), (twin.conv, twin.shared, twin.head)
    ):
        found, wanted = layer.probe.gradient, dense.weight.grad
        assert (found is None) == (wanted is None) == (layer.values.grad is None)
        if wanted is None:
            assert not layer.probe.took_part
            continue
        wanted = wanted.detach().reshape(found.shape)
        torch.testing.assert_close(found, wanted, **tolerance)
        own = gather_blocks(wanted, layer.layout.tensors(), layer.layout.sizes())
        torch.testing.assert_close(layer.values.grad.detach(), own, **tolerance)
        assert layer.probe.took_part
        assert not found.requires_grad


@pytest.fixture
def doubles(monkeypatch):
    monkeypatch.setattr(f"{__name__}.X", X.double())


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__qualname__)
def test_loops(loop, doubles):
    sparse, twin = pair()
    for layer in (sparse.conv, sparse.shared, sparse.head):
        layer.collect(accumulate=True)
    loop(sparse, [sparse.conv.values, sparse.shared.values, sparse.head.values])
    loop(twin, [twin.conv.weight, twin.shared.weight, twin.head.weight])
    assert_same(sparse, twin)


@pytest.mark.parametrize("hooks_first", [True, False])
def test_an_optimizer_in_backward_takes_each_gradient(hooks_first, doubles):
    sparse, twin = pair()
    wanted, found = [], []
    twin.shared.weight.register_post_accumulate_grad_hook(lambda w: wanted.append(freed(w)))
    step = lambda w: found.append((sparse.shared.probe.take(), freed(w)))  # noqa: E731
    if hooks_first:
        sparse.shared.values.register_post_accumulate_grad_hook(step)
    sparse.shared.collect(accumulate=True)
    if not hooks_first:
        sparse.shared.values.register_post_accumulate_grad_hook(step)
    for model in (sparse, twin):
        micro_batches(model, None)
    assert len(found) == len(wanted) == 4
    for (dense, _), right in zip(found, wanted):
        torch.testing.assert_close(dense[:, :, 0, 0], right)


def freed(weight):
    gradient, weight.grad = weight.grad, None
    return gradient


@pytest.mark.parametrize("how", ["bfloat16", "autocast", "saved on cpu", "rows", "compiled"])
def test_circumstances(how, monkeypatch):
    sparse, twin = pair(torch.bfloat16 if how == "bfloat16" else torch.float32)
    if how == "bfloat16":
        monkeypatch.setattr(f"{__name__}.X", X.bfloat16())
    if how == "rows":
        monkeypatch.setattr(f"{__name__}.X", in_order(X, "rows"))
    for layer in (sparse.conv, sparse.shared, sparse.head):
        layer.collect(accumulate=True)
    for model in (sparse, twin):
        called = (
            torch.compile(model, fullgraph=True, backend="aot_eager")
            if how == "compiled"
            else model
        )
        weights = [
            m.values if hasattr(m, "values") else m.weight
            for m in (model.conv, model.shared, model.head)
        ]
        around = torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast")
        saved = torch.autograd.graph.save_on_cpu() if how == "saved on cpu" else nullcontext()
        with around, saved:
            thrown_away_as_zeros(called, weights)
            if how not in ("compiled", "autocast", "bfloat16"):
                gradient_penalty(called, weights)
                added_by_hand(called, weights)
    low = (
        {"rtol": 0.05, "atol": 0.01}
        if how in ("bfloat16", "autocast")
        else {"rtol": 1e-4, "atol": 1e-6}
    )
    assert_same(sparse, twin, **low)


def test_functional_calls(doubles):
    sparse, twin = pair()
    for layer in (sparse.conv, sparse.shared, sparse.head):
        layer.collect(accumulate=True)
    for model in (sparse, twin):
        copies = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        loss_of(lambda x: functional_call(model, copies, (x,))).backward()
        for name, parameter in model.named_parameters():
            parameter.grad = copies[name].grad * 2
    assert_same(sparse, twin)


def test_what_is_taken_stays_and_a_new_sum_begins(doubles):
    sparse, twin = pair()
    sparse.conv.collect(memory=0.5, accumulate=True)
    probe = sparse.conv.probe
    assert (probe.took_part, probe.take(), probe.scores) == (False, None, None)
    for model in (sparse, twin):
        loss_of(model).backward()
    kept = probe.take()
    sparse.zero_grad(set_to_none=False)
    assert not probe.took_part
    assert probe.gradient is None
    torch.testing.assert_close(kept, twin.conv.weight.grad)
    probe.add_scores(kept)
    first = probe.scores.clone()
    loss_of(sparse).backward()
    torch.testing.assert_close(sparse.conv.collected, 1.5 * first)
    torch.testing.assert_close(probe.scores, first)
    sparse.zero_grad()
    sparse.head(torch.ones(1, 32).double()).sum().backward()
    assert (probe.gradient, probe.took_part) == (None, False)
    probe.add_scores(kept * float("nan"))
    assert sparse.conv.stop().isnan().all()


def test_nothing_is_left_behind(doubles):
    """No hooks, no cycles that keep gradients, and no memory until backward."""
    sparse, _ = pair()
    layer = sparse.shared
    layer.collect(accumulate=True)
    assert layer.probe.leaf.untyped_storage().nbytes() == 8
    alive = weakref.ref(layer.probe)
    loss = loss_of(sparse)
    loss.backward(retain_graph=True)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(sparse)))
    assert copied.shared.probe is None
    assert not copied.shared.values._backward_hooks
    layer.stop()
    assert alive() is None
    assert not layer.values._backward_hooks
    assert not layer.values._post_accumulate_grad_hooks
    loss.backward()


def test_ddp(tmp_path, doubles):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for views in (True, False):
            sparse, twin = pair()
            for layer in (sparse.conv, sparse.shared, sparse.head):
                layer.collect(accumulate=True)
            spread = DistributedDataParallel(sparse, gradient_as_bucket_view=views)
            for model in (spread, twin):
                for _ in range(2):
                    loss_of(model).backward()
                    loss_of(model, slice(4)).backward()
                    model.zero_grad(set_to_none=False)
                    loss_of(model, slice(4, 7)).backward()
            assert_same(sparse, twin)
    finally:
        dist.destroy_process_group()
