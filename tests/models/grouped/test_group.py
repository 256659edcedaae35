"""Grouped members give what members give one by one, with one launch for each layer."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import Bottleneck, ResNet

from sparse_engine import SparseConv2d, SparseLinear, densify, sparsify, to_rows
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.models.build import build_model
from sparse_engine.models.grouped.group import group
from sparse_engine.sparsity.sparsify import dense_layers
from sparse_kernels.dispatch.backend import forced_backend
from sparse_kernels.operators.reference import gather_blocks

SIZES = {"classes": 10, "channels": 3, "height": 8, "width": 8}


class Odd(nn.Module):
    """Channels that are no multiple of any block, a residual, a stride, and flattened pixels."""

    def __init__(self, flat=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.inner = nn.Conv2d(24, 40, 3, padding=1, bias=False)
        self.back = nn.Conv2d(40, 24, 1)
        self.pool = nn.MaxPool2d(2)
        self.flat = flat
        self.hidden = nn.Linear(24 * 4 if flat else 24, 20)
        self.classifier = nn.Linear(20, 7)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = self.pool(x + self.back(torch.relu(self.inner(x))))
        x = self.pool(x).flatten(1) if self.flat else x.mean((2, 3))
        return self.classifier(torch.relu(self.hidden(x)))


def lively(model):
    """Give batch norms statistics and factors as training would."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias, std=0.1)
    return model


def members(make, block=(16, 16), sparsity=0.6, count=3):
    torch.manual_seed(0)
    found = [lively(make()).eval() for _ in range(count)]
    for model in found:
        if sparsity:
            sparsify(model, sparsity, "uniform", block=block, init="random")
    return found


def images(size=8, count=4):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def one_by_one(models, x):
    logits = torch.stack([model(x) for model in models])
    assert not torch.allclose(logits[0], logits[1], rtol=0.1)
    return logits


def assert_equal(got, wanted):
    assert got.shape == wanted.shape
    torch.testing.assert_close(
        got, wanted, rtol=1e-4, atol=1e-5 * wanted.detach().abs().max().item()
    )


def named(name):
    return lambda: build_model(name, **SIZES)


NETWORKS = {
    "odd": (Odd, {}),
    "odd wide blocks": (Odd, {"block": (32, 16)}),
    "odd blocks of 48": (lambda: Odd(flat=False), {"block": (48, 48)}),
    "odd single weights": (Odd, {"block": (1, 1)}),
    "odd dense": (Odd, {"sparsity": 0}),
    "wrn": (named("wrn10-1"), {}),
    "resnet": (named("resnet8"), {}),
    "mlp": (named("mlp"), {"block": (32, 32)}),
    "bottleneck": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], 10, width_per_group=8), {}),
    "groups": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], 10, groups=8, width_per_group=8), {}),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", ["auto", "masked", "gemm"])
def test_equals_the_members(name, backend):
    make, options = NETWORKS[name]
    if backend == "gemm" and options.get("block") == (1, 1):
        backend = "auto"
    models, x = members(make, **options), images()
    with torch.no_grad(), forced_backend(backend):
        assert_equal(group(models)(x), one_by_one(models, x))


def test_spare_slots_stay_out_of_every_member():
    torch.manual_seed(0)
    models, x = [build_model("mlp", **SIZES).eval() for _ in range(3)], images()
    for model in models:
        sparsify(model, 0.7, "uniform", block=(16, 16), init="random", headroom=0.25)
    with torch.no_grad():
        grouped = group(models)
        assert_equal(grouped(x), one_by_one(models, x))
    for name, layer in grouped.named_modules():
        if isinstance(layer, SparseLayer):
            layouts = [model.get_submodule(name).layout for model in models]
            assert layer.layout.slots > layer.layout.active == sum(a.active for a in layouts)
            assert layer.layout.validate(layer.layout.block_ids) == layer.layout.active


def test_one_channel_shown_to_a_network_for_three():
    class OneChannel(Odd):
        def forward(self, x):
            return super().forward(x.expand(-1, 3, -1, -1))

    models, x = members(OneChannel), images()[:, :1]
    with torch.no_grad():
        assert_equal(group(models)(x), one_by_one(models, x))


def test_equals_the_members_in_the_interpreter(triton_backend):
    models, x = members(Odd, (32, 16), count=2), images(count=2)
    with torch.no_grad():
        assert_equal(group(models)(x), one_by_one(models, x))


def test_what_lies_past_the_last_channel_is_not_read():
    models, x = members(Odd, (32, 16)), images()
    grouped = group(models)
    for layer in (layer for model in models for layer in model.modules()):
        if isinstance(layer, SparseLayer):
            index, sizes = layer.layout.tensors(), layer.layout.sizes()
            inside = gather_blocks(torch.ones(layer.layout.shape), index, sizes)
            layer.values.data += 100 * (1 - inside)
    with torch.no_grad():
        assert_equal(group(models)(x), grouped(x))


def test_one_launch_for_each_layer():
    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found = Counter()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.found[function.namespace] += 1
            return function(*args, **(kwargs or {}))

    models, x = members(Odd), images()
    layers = sum(isinstance(layer, SparseLayer) for layer in models[0].modules())
    counts = []
    for network in (models[0], group(models)):
        with torch.no_grad(), forced_backend("gemm"), Calls() as calls:
            network(x)
        counts.append(calls.found["sparse_kernels"])
    assert counts == [layers, layers]


def test_nothing_is_stored_between_members():
    models = members(Odd, (16, 16))
    grouped = group(models)
    for name, layer in models[0].named_modules():
        if isinstance(layer, SparseLayer):
            each = [model.get_submodule(name) for model in models]
            own = grouped.get_submodule(name)
            assert own.layout.slots == sum(other.layout.slots for other in each)
            assert own.layout.active == sum(other.layout.active for other in each)
            parts = own.values.split([other.layout.slots for other in each])
            assert all(torch.equal(a, b.values) for a, b in zip(parts, each, strict=True))


def test_members_may_differ_in_blocks_and_be_full():
    models, x = members(Odd, sparsity=0), images()
    sparsify(models[0], 0.8, "uniform", block=(16, 16), init="random", headroom=0.5)
    sparsify(models[1], 0.3, "erk", block=(16, 16), init="random")
    sparsify(models[2], 0.5, "uniform", block=(16, 16), init="random", skip=["inner"])
    assert {name for name, _ in dense_layers(models[2])} == {"inner"}
    with torch.no_grad():
        assert_equal(group(models)(x), one_by_one(models, x))


def test_taps_that_go_together():
    torch.manual_seed(0)
    models = [Odd().eval() for _ in range(2)]
    for model in models:
        sparsify(model, 0.5, block=(16, 16), taps="all", init="random")
    grouped = group(models)
    assert grouped.get_submodule("inner").taps == "all"
    with torch.no_grad():
        assert_equal(grouped(images()), one_by_one(models, images()))


@pytest.mark.parametrize("backend", ["masked", "gemm"])
def test_training_members_on_batches_of_their_own(backend):
    models = members(Odd)
    twins = copy.deepcopy(models)
    for model in (*models, *twins):
        model.train()
    grouped = group(models, shared_input=False)
    x = torch.stack([images(count=8) + member for member in range(3)])
    y = torch.randint(7, (3, 8), generator=torch.Generator().manual_seed(2))
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, 0.9) for m in (grouped, *twins)]
    with forced_backend(backend):
        for _ in range(3):
            logits = grouped(x)
            # A mean over images, and a sum over members: each learns as alone.
            nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).mul(3).backward()
            apart = torch.stack([twin(own) for twin, own in zip(twins, x, strict=True)])
            losses = map(nn.functional.cross_entropy, apart, y)
            torch.stack(list(losses)).sum().backward()
            assert_equal(logits, apart)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    with torch.no_grad(), forced_backend(backend):
        grouped.eval()
        apart = torch.stack([twin.eval()(own) for twin, own in zip(twins, x, strict=True)])
        assert_equal(grouped(x), apart)


def test_compiled():
    models, x = members(Odd), images()
    with torch.no_grad():
        compiled = torch.compile(group(models), fullgraph=True, backend="aot_eager")
        assert_equal(compiled(x), one_by_one(models, x))
        assert_equal(compiled(images(count=6)), one_by_one(models, images(count=6)))


def test_autocast():
    models, x = members(Odd), images()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        got, wanted = group(models)(x), one_by_one(models, x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))


def test_rows_stay_rows():
    models, x = [to_rows(model) for model in members(Odd)], images()
    with torch.no_grad():
        grouped = group(models)
        assert_equal(grouped(x), one_by_one(models, x))
    assert type(grouped.get_submodule("norm")).__name__ == "RowsBatchNorm2d"


def test_state_dict_round_trip():
    first, second = members(Odd), members(Odd)[::-1]
    grouped, other = group(first), group(second)
    other.load_state_dict(grouped.state_dict())
    assert torch.equal(other(images()), grouped(images()))


def test_densify_takes_the_grouped_network():
    models, x = members(Odd), images()
    grouped = group(models)
    with torch.no_grad():
        assert_equal(densify(copy.deepcopy(grouped))(x), grouped(x))


class Normed(nn.Module):
    def __init__(self, norm=None, twice=False):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 3, 1), norm or nn.Identity(), twice

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.conv(x) if self.twice else x


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def pair(first, second):
    return [first.eval(), second.eval()]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (lambda: [], "at least one member"),
        (lambda: pair(Odd(), nn.Linear(2, 2)), "member 2 is of another architecture than member 1"),
        (lambda: pair(Odd(), Odd(flat=False)), "member 2 is of another architecture than member 1"),
        (lambda: [Odd().eval(), Odd()], "some members are in training mode"),
        (lambda: pair(Normed(nn.GroupNorm(1, 3)), Normed(nn.GroupNorm(1, 3))), r"\(GroupNorm\)"),
        (lambda: pair(Normed(twice=True), Normed(twice=True)), "'conv' is used twice"),
        (lambda: pair(Branching(), Branching()), "a Branching cannot be grouped"),
        (
            lambda: pair(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 3))),
            "another out_features in member 2 than in member 1 .3 and 2.",
        ),
        (lambda: pair(Odd(), Odd().double()), "another data type in member 2"),
        (
            lambda: [members(Odd, block)[0] for block in ((16, 16), (16, 32))],
            "has blocks 16x16 and 16x32 in different members",
        ),
    ],
)
def test_what_cannot_be_grouped(models, words):
    with pytest.raises(InputError, match=words):
        group(models())


def test_grouped_layers_are_ordinary_sparse_layers():
    grouped = group(members(Odd, sparsity=0.5))
    assert isinstance(grouped.get_submodule("inner"), SparseConv2d)
    assert isinstance(grouped.get_submodule("hidden"), SparseLinear)
