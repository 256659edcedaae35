"""Members that train together become what they become alone."""

import copy

import pytest
import torch
from torch import nn

from sparse_engine import sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.models.grouped.members import GroupedMembers
from sparse_engine.sparsity.topology import Topology
from sparse_engine.training.group_topology import GroupTopology
from sparse_kernels.dispatch.backend import forced_backend

MEMBERS = 3


class Small(nn.Module):
    """Odd channels, so that blocks are ragged and members padded."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.inner = nn.Conv2d(24, 40, 3, padding=1, bias=False)
        self.classifier = nn.Linear(40, 7)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.classifier(torch.relu(self.inner(x)).mean((2, 3)))


def networks(**options):
    torch.manual_seed(0)
    found = [Small() for _ in range(MEMBERS)]
    for model in found:
        sparsify(model, 0.6, "uniform", block=(16, 16), init="random", skip=["stem"], **options)
    return found


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(MEMBERS, 6, 3, 5, 5, generator=generator)
    return x, torch.randint(7, (MEMBERS, 6), generator=generator)


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3)


def train(step_of, topologies, optimizers, steps=6):
    """Train with an update in every third step, and half of a gradual pruning done by then."""
    for step in range(1, steps + 1):
        x, y = batch(step)
        if step % 3 == 0:
            for topology in topologies:
                topology.arm()
        step_of(x, y)
        for optimizer in optimizers:
            optimizer.step()
        if step % 3 == 0:
            for topology in topologies:
                topology.update(0.4, step / steps)
        for optimizer in optimizers:
            optimizer.zero_grad()


def block_lists(model):
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    return {n: m.layout.block_ids.tolist() for n, m in layers.items()}


@pytest.mark.parametrize("backend", ["masked", "native"])
@pytest.mark.parametrize("rule", ["static", "set", "rigl", "granet"])
def test_equals_members_trained_apart(rule, backend):
    models = networks(**({"start_sparsity": 0.4} if rule == "granet" else {}))
    apart, before = copy.deepcopy(models), [block_lists(model) for model in models]
    together = GroupedMembers(models)
    optimizer, optimizers = sgd(together), [sgd(model) for model in apart]
    topology = GroupTopology(together, optimizer, rule, seeds=range(MEMBERS))
    topologies = [Topology(m, o, rule, n) for n, (m, o) in enumerate(zip(apart, optimizers))]

    def together_step(x, y):
        sum(map(nn.functional.cross_entropy, together(x), y)).backward()

    def apart_step(x, y):
        for model, images, labels in zip(apart, x, y, strict=True):
            nn.functional.cross_entropy(model(images), labels).backward()

    with forced_backend(backend):
        train(together_step, [topology], [optimizer])
        train(apart_step, topologies, optimizers)
        together.eval()
        with torch.no_grad():
            x, _ = batch(99)
            logits = together(x)
            for own, model, other, images in zip(logits, models, apart, x, strict=True):
                torch.testing.assert_close(own, other.eval()(images), rtol=1e-3, atol=1e-4)
                torch.testing.assert_close(own, model(images), rtol=1e-4, atol=1e-5)
    after = [block_lists(model) for model in models]
    assert after == [block_lists(model) for model in apart]
    assert (after == before) == (rule == "static")
    for grouped, layers in together.sparse_layers().values():
        assert grouped.layout.active == sum(layer.layout.active for layer in layers)


def test_grown_blocks_have_no_momentum():
    together = GroupedMembers(networks())
    optimizer = sgd(together)
    topology = GroupTopology(together, optimizer, "set", seeds=range(MEMBERS))
    x, y = batch(1)
    sum(map(nn.functional.cross_entropy, together(x), y)).backward()
    optimizer.step()
    grouped, layers = together.sparse_layers()["inner"]
    old = [layer.layout.block_ids.clone() for layer in layers]
    topology.update(0.5)
    momenta = optimizer.state[grouped.values]["momentum_buffer"]
    parts = momenta.split([layer.layout.slots for layer in layers])
    for layer, ids, part in zip(layers, old, parts, strict=True):
        grown = layer.layout.block_ids != ids
        assert grown.any()
        assert not part[grown].any()
        assert part[~grown].any()


def test_members_are_views():
    models = networks()
    together = GroupedMembers(models)
    with torch.no_grad():
        for parameter in together.parameters():
            parameter.zero_()
    assert all(not p.any() for model in models for p in model.parameters())
    together.eval()
    assert not any(model.training for model in models)


def test_what_cannot_train_together():
    models = networks()
    together = GroupedMembers(models)
    with pytest.raises(InputError, match=r"by static, set, rigl, granet, not 'snfs'"):
        GroupTopology(together, sgd(together), "snfs", seeds=range(MEMBERS))
    mixed = [Small(), Small()]
    sparsify(mixed[0], 0.5, block=(16, 16), skip=["stem"])
    with pytest.raises(InputError, match="'inner' is sparse in some members only"):
        GroupedMembers(mixed)


def test_noise_on_all_parameters_does_not_reach_other_channels_by_the_padding():
    models = networks()
    grouped, x = GroupedMembers(models), torch.randn(MEMBERS, 4, 3, 8, 8)
    for written in (grouped, *models):
        first = grouped(x)
        with torch.no_grad():
            for parameter in written.parameters():
                parameter.data.add_(0.3 * torch.randn_like(parameter))
        found = grouped.eval()(x)
        alone = [model.eval()(own) for model, own in zip(models, x)]
        torch.testing.assert_close(found, torch.stack(alone))
        first.sum().backward()  # what was cleared for the second forward does not disturb it
