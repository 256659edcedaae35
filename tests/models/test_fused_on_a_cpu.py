"""fuse on a CPU: the same numbers, with norms, ReLUs and residuals by the native kernels."""

import copy

import pytest
import torch
import torchvision
from norms import lively
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sparse_engine import fuse, sparsify, to_rows
from sparse_engine.models.fused import unfused
from sparse_engine.models.resnet import Bottleneck, ResNet
from sparse_engine.models.vgg import VGG16
from sparse_engine.models.wide_resnet import WideResNet


def torchvision_resnet() -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=4)


def small_vgg() -> nn.Module:
    model = VGG16(classes=4, channels=3, height=4, width=4)
    model.features = model.features[:4]
    model.classifier = nn.Linear(128, 4)
    return model


NETWORKS = {
    "wide": lambda: WideResNet(10, 1, classes=4, channels=3),
    "resnet": lambda: ResNet(8, classes=4, channels=3),
    "bottleneck": lambda: nn.Sequential(Bottleneck(3, 4, 1), Bottleneck(16, 4, 2)),
    "vgg": small_vgg,
    "torchvision": torchvision_resnet,
}


@pytest.fixture(autouse=True)
def native(monkeypatch):
    """Take native kernels whatever `auto` would, and let what nobody has written be NaN."""
    monkeypatch.setenv("SPARSE_ENGINE_BACKEND", "native")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def sparse(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = lively(NETWORKS[name]())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1  # what has no active block varies by nothing
    sparsify(model, 0.6, "uniform", block=(4, 4))
    return model.to(memory_format=torch.channels_last)


def steps(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return outputs and gradients of two steps of SGD, the state, and the output in eval mode."""
    found, dtype = {}, next(model.parameters()).dtype
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for step in range(2):
        x = torch.randn(3, 3, 9, 7, generator=generator).to(dtype)
        x = x.to(memory_format=torch.channels_last)
        y = model(x)
        optimizer.zero_grad()
        y.square().mean().backward()
        optimizer.step()
        learnt = {n: p for n, p in model.named_parameters() if p.requires_grad}
        found |= {f"y {step}": y.detach()} | {f"{n} {step}": p.grad for n, p in learnt.items()}
        found = {n: t.clone() for n, t in found.items()}
    found |= {n: b.clone() for n, b in model.named_buffers()}
    with torch.no_grad():
        found["eval"] = model.eval()(x)
    return found


def norms_of(model: nn.Module) -> int:
    """Return how many norms of a forward the native kernels compute."""
    x = torch.randn(2, 3, 9, 7).to(memory_format=torch.channels_last)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        model(x)
    return sum(event.name == "sparse_kernels::norm_native" for event in seen.events())


@pytest.mark.parametrize("in_rows", [False, True], ids=["channels_last", "rows"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_numbers(name, in_rows):
    plain = sparse(name)
    plain = to_rows(plain) if in_rows else plain
    fused = fuse(copy.deepcopy(plain))
    exact = steps(copy.deepcopy(plain).double())
    found, usual = steps(fused), steps(plain)
    assert found.keys() == usual.keys()
    for key, right in exact.items():
        errors = [float((run[key] - right).double().norm()) for run in (found, usual)]
        size = max(1.0, float(right.double().norm()))
        assert errors[0] <= 4 * errors[1] + 1e-5 * size, key


@pytest.mark.parametrize("name", NETWORKS)
def test_every_norm_is_native(name):
    model = fuse(sparse(name))
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert norms_of(model) == norms
    with unfused(model):
        assert norms_of(model) == 0


def test_small_images_and_one_image_run_as_before(monkeypatch):
    plain = sparse("resnet")
    fused = fuse(copy.deepcopy(plain))
    monkeypatch.setenv("SPARSE_ENGINE_BACKEND", "auto")
    for images in (2, 1):
        x = torch.randn(images, 3, 9, 7).to(memory_format=torch.channels_last)
        assert fused(x).equal(plain(x))


def test_hooks_and_transforms_see_what_they_saw_before():
    plain = sparse("wide").eval()
    fused = fuse(copy.deepcopy(plain))
    x = torch.randn(2, 3, 9, 7).to(memory_format=torch.channels_last)
    seen = []
    fused.blocks[0].norm1.register_forward_hook(lambda *_: seen.append(1))
    fused(x)
    assert seen == [1]

    def gradients(model):
        return torch.func.vmap(torch.func.grad(lambda x: model(x[None]).square().sum()))(x)

    torch.testing.assert_close(gradients(fused), gradients(plain))


def test_gradients_of_gradients():
    plain = sparse("wide")
    fused = fuse(copy.deepcopy(plain))
    x = torch.randn(2, 3, 9, 7).to(memory_format=torch.channels_last)
    found = []
    for model in (fused, plain):
        loss = model(x).square().sum()
        weights = list(model.parameters())
        first = torch.autograd.grad(loss, weights, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), weights))
    for left, right in zip(*found):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
