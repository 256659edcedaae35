"""Grouped members give what members give one by one, with one launch for each layer."""

import copy

import pytest
import torch
from grouped_networks import Odd, assert_equal, images, members, one_by_one
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from sparse_engine import densify, to_rows
from sparse_engine.errors import InputError
from sparse_engine.models.build import build_model
from sparse_engine.models.grouped.group import group
from sparse_kernels.dispatch.backend import forced_backend

SIZES = {"classes": 10, "channels": 3, "height": 8, "width": 8}


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
@pytest.mark.parametrize("backend", ["auto", "masked", "native"])
def test_equals_the_members(name, backend):
    make, options = NETWORKS[name]
    if backend == "native" and options.get("block") == (1, 1):
        backend = "auto"
    models, x = members(make, **options), images()
    with torch.no_grad(), forced_backend(backend):
        assert_equal(group(models)(x), one_by_one(models, x))


def test_one_channel_shown_to_a_network_for_three():
    class OneChannel(Odd):
        def forward(self, x):
            return super().forward(x.expand(-1, 3, -1, -1))

    models, x = members(OneChannel), images()[:, :1]
    with torch.no_grad():
        assert_equal(group(models)(x), one_by_one(models, x))


@pytest.mark.parametrize("backend", ["masked", "native"])
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
