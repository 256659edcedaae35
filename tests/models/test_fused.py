"""fuse: the same numbers as before in fewer passes; and as before where nothing can be fused."""

import copy
import math
import pickle
from collections import Counter

import pytest
import torch
import torchvision
from norms import lively
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_engine import fuse, sparsify, to_rows
from sparse_engine.layers.base import SparseLayer
from sparse_engine.models.resnet import BasicBlock, Bottleneck
from sparse_engine.models.vgg import VGG16
from sparse_engine.models.wide_resnet import PreActivationBlock
from sparse_kernels.index_tensors import all_lists
from sparse_kernels.triton.launch import launch

STEPS = 2
IMAGES = (2, 3, 4, 4)
PIXELS = math.prod(IMAGES)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Operators that start nothing, and copy_, which the interpreter calls; a cast is a _to_copy.
NO_KERNEL = {
    *("as_strided", "copy_", "detach", "empty", "empty_like", "empty_strided", "new_empty"),
    *("permute", "select", "set_", "to", "unbind", "view", "view_as"),
}


class Blocks(nn.Module):
    """A dense stem and two blocks, the second one of which keeps the shape."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(self.stem(x)).mean((2, 3))


def torchvision_blocks() -> nn.Module:
    block, bottleneck = (
        getattr(torchvision.models.resnet, n) for n in ("BasicBlock", "Bottleneck")
    )
    downsample = nn.Sequential(nn.Conv2d(16, 64, 1, 2, bias=False), nn.BatchNorm2d(64))
    return Blocks(block(16, 16), bottleneck(16, 16, 2, downsample))


def small_vgg() -> nn.Module:
    # One stage and a layer.
    model = VGG16(classes=4, channels=3, height=4, width=4)
    model.features = model.features[:4]
    model.classifier = nn.Linear(128, 4)
    return model


NETWORKS = {
    "pre-activation": lambda: Blocks(
        PreActivationBlock(16, 32, 2, 0.0), PreActivationBlock(32, 32, 1, 0.0)
    ),
    "basic": lambda: Blocks(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1)),
    "bottleneck": lambda: Blocks(Bottleneck(16, 16, 1), Bottleneck(64, 16, 1)),
    "torchvision": torchvision_blocks,
    "vgg": small_vgg,
}


def sparse(model: nn.Module, block: int = 16) -> nn.Module:
    """Return the network with sparse layers, in rows, its norms far from what they begin as."""
    sparsify(model, 0.7, "uniform", block=(block, block))
    for module in lively(model).modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1  # what has no active block varies by nothing
    return to_rows(model.to(DEVICE))


def steps(model: nn.Module, count: int = STEPS) -> dict[str, torch.Tensor]:
    """Return outputs, gradients and buffers of some steps of SGD, and the output in eval mode."""
    found = {}
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for step in range(count):
        x = torch.randn(IMAGES, generator=generator).to(dtype).to(DEVICE)
        y = model(x)
        optimizer.zero_grad()
        (y * torch.randn(y.shape, generator=generator).to(DEVICE)).sum().backward()
        optimizer.step()
        found[f"y {step}"] = y.detach()
        learnt = {n: p for n, p in model.named_parameters() if p.requires_grad}
        found |= {f"{n} {step}": p.grad.clone() for n, p in learnt.items()}
    found |= {n: b.clone() for n, b in model.named_buffers()}
    with torch.no_grad():
        found["eval"] = copy.deepcopy(model).eval()(x)
    return found


def assert_same(found, plain, exact):
    """Compare with a plain network by how far both are from the same in float64."""
    assert found.keys() == plain.keys()
    for name, right in exact.items():
        error, usual = (float((run[name] - right).double().norm()) for run in (found, plain))
        assert error <= 4 * usual + 1e-5 * max(1.0, float(right.double().norm())), name


class Log(TorchDispatchMode):
    """Notes what is called with images, and in which order these lie."""

    def __init__(self):
        super().__init__()
        self.names, self.orders = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = (*args, *(out if isinstance(out, tuple) else (out,)))
        images = [
            t for t in tensors if isinstance(t, torch.Tensor) and t.ndim == 4 and t.numel() > PIXELS
        ]
        if images and not function.is_view:
            self.names.append(function.overloadpacket.__name__)
            if "sparse_kernels" in str(function):
                rows = all(t.permute(2, 3, 0, 1).is_contiguous() for t in images)
                self.orders.add("rows" if rows else str(function))
        return out


@pytest.mark.usefixtures("poisoned_kernels")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_numbers_in_rows_and_fewer_passes(name, monkeypatch):
    plain = sparse(NETWORKS[name](), 64 if name == "vgg" else 16)
    wide = copy.deepcopy(plain).double()
    fused = pickle.loads(pickle.dumps(fuse(copy.deepcopy(plain))))
    assert list(fused.state_dict()) == list(plain.state_dict())
    with Log() as log:
        found = steps(fused)
    monkeypatch.setenv("SPARSE_ENGINE_BACKEND", "masked")
    assert_same(found, steps(plain), steps(wide))
    assert log.orders == {"rows"}
    assert "conv2d_fused" in log.names
    if name in ("bottleneck", "torchvision"):
        return  # some of their layers are full, and so dense, between sparse ones
    own_passes = {"native_batch_norm", "cudnn_batch_norm", "relu", "threshold_backward", "add"}
    assert not own_passes & set(log.names)
    assert log.names.count("clone") == STEPS  # the gradient of the mean over pixels


def small(dropout: float = 0.0) -> nn.Module:
    return sparse(Blocks(PreActivationBlock(16, 16, 1, dropout)))


def set_norms(model: nn.Module, *settings: dict) -> None:
    block = model.blocks[0]
    for norm, values in zip((block.norm1, block.norm2), settings):
        for name, value in values.items():
            setattr(norm, name, value)


NO_STATISTICS = {"track_running_stats": False, "running_mean": None, "running_var": None}
MODES = {
    "cumulative, not followed": lambda m: set_norms(m, {"momentum": None}, {"momentum": 0.0}),
    "fixed, no running ones": lambda m: set_norms(m, {"training": False}, NO_STATISTICS),
    "no gradient": lambda m: m.blocks[0].norm2.requires_grad_(False),
    "eval but norms": lambda m: set_norms(m.eval(), {"training": True}, {"training": True}),
    "scores of absent blocks": lambda m: m.blocks[0].conv1.collect(),
}


@pytest.mark.usefixtures("poisoned_kernels")
@pytest.mark.parametrize("change", MODES.values(), ids=MODES)
def test_modes_of_norms_and_layers(change, monkeypatch):
    plain = small()
    wide = copy.deepcopy(plain).double()
    fused = fuse(copy.deepcopy(plain))
    networks = (fused, plain, wide)
    for network in networks:
        change(network)
    with Log() as log:
        found = [steps(fused, 1)]
    assert "conv2d_fused" in log.names
    monkeypatch.setenv("SPARSE_ENGINE_BACKEND", "masked")
    found += [steps(plain, 1), steps(wide, 1)]
    for run, network in zip(found, networks):
        scores = network.blocks[0].conv1.stop()
        run |= {} if scores is None else {"scores": scores}
    assert_same(*found)


def equal(found, expected) -> bool:
    return all(torch.equal(found[name], right) for name, right in expected.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_without_kernels_nothing_changes(name):
    plain = sparse(NETWORKS[name]())
    assert equal(steps(fuse(copy.deepcopy(plain)), 1), steps(plain, 1))


def hooked(model: nn.Module) -> nn.Module:
    model.blocks[0].conv2.register_forward_hook(lambda *_: None)
    return model


def synchronised(model: nn.Module) -> nn.Module:
    model.blocks[0].norm1.__class__ = type("OtherNorm", (nn.BatchNorm2d,), {})
    return model


@pytest.mark.parametrize("change", [hooked, synchronised])
def test_blocks_that_cannot_be_fused_run_as_before(change, triton_backend):
    plain = change(small())
    with Log() as log:
        found = steps(fuse(copy.deepcopy(plain)), 1)
    assert "conv2d_fused" not in log.names
    assert equal(found, steps(plain, 1))


@pytest.mark.usefixtures("poisoned_kernels")
def test_a_norm_that_is_not_fused_after_a_fused_layer_follows_once(monkeypatch):
    plain = sparse(NETWORKS["pre-activation"]())
    plain.blocks[1].conv1.register_forward_hook(lambda *_: None)
    wide = copy.deepcopy(plain).double()
    with Log() as log:
        found = steps(fuse(copy.deepcopy(plain)))
    assert {"conv2d_fused", "conv2d"} <= set(log.names)
    monkeypatch.setenv("SPARSE_ENGINE_BACKEND", "masked")
    assert_same(found, steps(plain), steps(wide))


def kernels_of_a_step(blocks: int, monkeypatch) -> Counter[str]:
    """Return what a step of a network of some blocks starts, under autocast, by name."""
    model = fuse(sparse(Blocks(*(PreActivationBlock(16, 16, 1, 0.0) for _ in range(blocks)))))
    x, started = torch.randn(IMAGES, device=DEVICE), Counter()
    for layer in (m for m in model.modules() if isinstance(m, SparseLayer)):
        # What a GPU keeps, which a CPU makes in each pass.
        layer.layout._lists = all_lists(layer.layout.block_ids, layer.layout.grid)

    def counted(like, kernel, *arguments, **constants):
        started[kernel.fn.__name__] += 1
        launch(like, kernel, *arguments, **constants)

    for module in ("operators.batch_norm", "triton.gather", "triton.sums", "triton.weight_grad"):
        monkeypatch.setattr(f"sparse_kernels.{module}.launch", counted)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        with torch.autocast(DEVICE, torch.float16):
            y = model(x)
        y.float().square().sum().backward()
    operators = (e.name.removeprefix("aten::") for e in seen.events() if "aten::" in e.name)
    return started + Counter(name for name in operators if name not in NO_KERNEL)


def test_a_fused_layer_takes_seven_kernels_a_step(triton_backend, monkeypatch):
    found = kernels_of_a_step(3, monkeypatch) - kernels_of_a_step(2, monkeypatch)
    assert found.pop("_to_copy") == 2  # of the values of two layers
    assert found == {
        "gather_pointers": 4,
        "weight_grad_pointers": 2,
        "joined": 2,
        "added": 2,
        "normalised_grad": 2,
    }


def test_dropout_is_drawn_between_the_convolutions(triton_backend):
    plain = small(dropout=0.5)
    found = []
    for model in (fuse(copy.deepcopy(plain)), plain):
        torch.manual_seed(0)
        found.append(model(torch.ones(2, 3, 2, 2, device=DEVICE)))
    torch.testing.assert_close(*found)


def test_autocast_computes_statistics_in_float32(triton_backend):
    model = fuse(small())
    x = torch.randn(2, 3, 2, 2, device=DEVICE)
    with Log() as log, torch.autocast(DEVICE, dtype=torch.float16):
        y = model(x)
    assert "conv2d_fused" in log.names
    assert y.dtype == torch.float16
    assert {b.dtype for b in model.blocks.buffers() if b.is_floating_point()} == {torch.float32}
    torch.testing.assert_close(y.float(), model(x), rtol=0.02, atol=0.02)


def test_compiled_in_one_graph(triton_backend):
    model = fuse(small()).train()
    x = torch.randn(2, 3, 2, 2, device=DEVICE)
    again = copy.deepcopy(model)
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    for network in (model, compiled):
        network(x).square().sum().backward()
    torch.testing.assert_close(compiled(x), model(x))
    for (name, p), q in zip(model.named_parameters(), again.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    for b, c in zip(model.buffers(), again.buffers()):
        torch.testing.assert_close(b, c)
