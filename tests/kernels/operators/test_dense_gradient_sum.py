"""DenseGradientSum against the grad of a dense weight put through the very same loop."""

import copy
import pickle
import random
import weakref
from contextlib import nullcontext

import gradient_loops
import pytest
import torch
import torch.distributed as dist
from gradient_loops import (
    LOOPS,
    Net,
    X,
    added_by_hand,
    gradient_penalty,
    hooked,
    loss_of,
    micro_batches,
    thrown_away_as_zeros,
)
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from sparse_engine import sparsify
from sparse_kernels.memory_order import in_order
from sparse_kernels.operators.reference import gather_blocks

NAMES = ("conv", "shared", "head")


def pair(dtype=torch.float64):
    """Return a sparse network whose layers collect, and the same with dense weights."""
    torch.manual_seed(0)
    sparse = Net()
    sparsify(sparse, 0.5, "uniform", (4, 8))
    sparse.to(dtype)
    twin = copy.deepcopy(sparse)
    for name in NAMES:
        setattr(twin, name, getattr(sparse, name).to_dense())
        getattr(sparse, name).collect(accumulate=True)
    return sparse, twin


def weights_of(model):
    layers = [getattr(model, name) for name in NAMES]
    return [layer.values if hasattr(layer, "values") else layer.weight for layer in layers]


def assert_same(sparse, twin, **tolerance):
    for name in NAMES:
        layer, wanted = getattr(sparse, name), getattr(twin, name).weight.grad
        found = layer.probe.gradient
        assert (found is None) == (wanted is None) == (layer.values.grad is None)
        assert layer.probe.took_part == (wanted is not None)
        if wanted is None:
            continue
        assert not found.requires_grad
        wanted = wanted.detach().reshape(found.shape)
        torch.testing.assert_close(found, wanted, **tolerance)
        own = gather_blocks(wanted, layer.layout.tensors(), layer.layout.sizes())
        torch.testing.assert_close(layer.values.grad.detach(), own, **tolerance)


@pytest.fixture
def doubles(monkeypatch):
    monkeypatch.setattr(gradient_loops, "X", X.double())


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__qualname__)
def test_loops(loop, doubles):
    sparse, twin = pair()
    for model in (sparse, twin):
        loop(model, weights_of(model))
    assert_same(sparse, twin)


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.filterwarnings("ignore:grad and param do not obey")  # the twin's
def test_loops_one_after_another(doubles):
    """Nothing thrown away between them but by themselves."""
    choose = random.Random(0)
    for _ in range(20):
        sparse, twin = pair()
        for loop in choose.choices([loop for loop in LOOPS if loop is not hooked], k=3):
            for model in (sparse, twin):
                loop(model, weights_of(model))
            sparse.reentrant = twin.reentrant = None
        assert_same(sparse, twin)


@pytest.mark.parametrize("hooks_first", [True, False])
def test_an_optimizer_in_backward_takes_each_gradient(hooks_first, doubles):
    sparse, twin = pair()
    layer, wanted, found = sparse.shared, [], []
    if hooks_first:
        layer.stop()
    twin.shared.weight.register_post_accumulate_grad_hook(lambda w: wanted.append(freed(w)))
    layer.values.register_post_accumulate_grad_hook(
        lambda w: found.append((layer.probe.take(), freed(w))[0])
    )
    if hooks_first:
        layer.collect(accumulate=True)
    for model in (sparse, twin):
        micro_batches(model, None)
    assert len(found) == len(wanted) == 4
    for dense, right in zip(found, wanted):
        torch.testing.assert_close(dense[:, :, 0, 0], right)


def freed(weight):
    gradient, weight.grad = weight.grad, None
    return gradient


CIRCUMSTANCES = {
    "bfloat16": lambda: X.bfloat16(),
    "autocast": lambda: X,
    "saved on cpu": lambda: X.double(),
    "rows": lambda: in_order(X.double(), "rows"),
    "compiled": lambda: X.double(),
}


@pytest.mark.parametrize("how", CIRCUMSTANCES)
def test_circumstances(how, monkeypatch):
    images = CIRCUMSTANCES[how]()
    monkeypatch.setattr(gradient_loops, "X", images)
    sparse, twin = pair(images.dtype)
    around = torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast")
    saved = torch.autograd.graph.save_on_cpu() if how == "saved on cpu" else nullcontext()
    for model in (sparse, twin):
        called = model
        if how == "compiled":
            called = torch.compile(model, fullgraph=True, backend="aot_eager")
        with around, saved:
            thrown_away_as_zeros(called, None)
            if how in ("saved on cpu", "rows"):
                gradient_penalty(called, None)
                added_by_hand(called, weights_of(model))
    low = how in ("bfloat16", "autocast")
    assert_same(sparse, twin, **({"rtol": 0.05, "atol": 0.01} if low else {}))


def test_copies_of_parameters_are_called(doubles):
    sparse, twin = pair()
    for model in (sparse, twin):
        copies = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        torch.nn.functional.cross_entropy(
            functional_call(model, copies, (gradient_loops.X,)), gradient_loops.Y
        ).backward()
        for name, parameter in model.named_parameters():
            parameter.grad = copies[name].grad * 2
    assert_same(sparse, twin)


def test_what_is_taken_stays_and_a_new_sum_begins(doubles):
    sparse, twin = pair()
    sparse.conv.stop()
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
