"""MIMO: M inputs and M heads, trained on independent permutations and tested on one image."""

import pytest
import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.mimo import MIMO
from sparse_engine.runs.model import dense_model

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """Stands for the network of two members and three classes; notes what it is given."""

    def forward(self, stacked):
        self.seen = stacked
        return stacked.mean((2, 3)).repeat(1, 3)


def numbered(count):
    """Return images whose pixels are their number, and that number as label."""
    labels = torch.arange(count)
    return labels.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2), labels


@pytest.mark.parametrize("model", ["wrn10-1", "resnet8", "vgg16", "mlp", "torchvision/resnet18"])
@pytest.mark.parametrize("dataset", ["digits", "cifar100"])
def test_there_are_as_many_inputs_and_heads_as_members(model, dataset):
    info = TABLE[dataset]
    config = resolve(Config(method="mimo", dataset=dataset, model=model, members=4))
    with torch.device("meta"):
        network = dense_model(config, info)
        x = torch.empty(2, info.channels, info.height, info.width)
        plain = dense_model(resolve(Config(method="dense", dataset=dataset, model=model)), info)
        assert network.member_logits(x).shape == (4, 2, info.classes)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    others = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shapes = [tuple(layer.weight.shape[:2]) for layer in layers]
    expected = [tuple(layer.weight.shape[:2]) for layer in others]
    seen = info.channels * (info.height * info.width if model == "mlp" else 1)
    expected[0] = (expected[0][0], 4 * seen)
    expected[-1] = (4 * info.classes, expected[-1][1])
    assert shapes == expected


def test_a_member_has_its_own_input_and_head():
    torch.manual_seed(0)
    first = nn.Linear(2, 6)
    network = MIMO(nn.Sequential(nn.Flatten(), first), 2, 1, 0.0)
    x = torch.randn(5, 1, 1, 1)
    logits, labels = network.training_pair(x, torch.arange(5))
    inputs = x.flatten()[labels].T
    torch.testing.assert_close(logits[0], first(inputs)[:, :3])
    torch.testing.assert_close(logits[1], first(inputs)[:, 3:])


def test_in_training_images_are_permuted_independently():
    torch.manual_seed(0)
    recorder = Recorder()
    network = MIMO(recorder, 2, 1, 0.0)
    x, y = numbered(50)
    _, labels = network.training_pair(x, y)
    assert labels.shape == (2, 50)
    assert torch.equal(recorder.seen[:, :, 0, 0].T.long(), labels)
    for row in labels:
        assert torch.equal(row.sort().values, y)
        assert not torch.equal(row, y)
    # Of two independent permutations one position in fifty agrees, on average.
    draws = torch.stack([network.draw_inputs(50, CPU) for _ in range(200)])
    assert 0.01 < (draws[:, 0] == draws[:, 1]).float().mean() < 0.03


def test_at_test_all_members_see_the_same_image():
    recorder = Recorder()
    network = MIMO(recorder, 2, 3, 0.5).eval()
    x, _ = numbered(7)
    state = torch.get_rng_state()
    network(x)
    assert torch.equal(recorder.seen, x.repeat(1, 2, 1, 1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("share", "equal"), [(0.0, 0), (0.6, 24), (1.0, 40)])
def test_repetition_of_batches_and_inputs(share, equal):
    torch.manual_seed(0)
    network = MIMO(Recorder(), 3, 2, share)
    chosen = network.draw_inputs(20, CPU)
    assert chosen.shape == (3, 40)
    for row in chosen:
        assert torch.equal(row.bincount(), torch.full((20,), 2))
    same = (chosen == chosen[0]).all(0)
    assert bool(same[:equal].all())
    assert same[equal:].sum() <= 3


def test_the_permutations_are_part_of_what_a_seed_decides():
    network = MIMO(Recorder(), 3, 1, 0.0)
    torch.manual_seed(3)
    first, second = network.draw_inputs(9, CPU), network.draw_inputs(9, CPU)
    torch.manual_seed(3)
    assert torch.equal(network.draw_inputs(9, CPU), first)
    assert not torch.equal(first, second)
