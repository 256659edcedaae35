"""MC dropout: passes at test differ by their dropout alone, and a seed decides them."""

import pytest
import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.errors import InputError
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.model import dense_model


def network_for(model="wrn10-1", dataset="digits", **settings):
    torch.manual_seed(0)
    config = Config(
        method="mc-dropout", model=model, dataset=dataset, **{"dropout": 0.3, **settings}
    )
    return dense_model(resolve(config), TABLE[dataset])


def images(count=5):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def passes_of(network, x):
    """Return the logits of every pass of a prediction."""
    found = []
    handle = network.model.register_forward_hook(lambda m, i, output: found.append(output))
    network(x)
    handle.remove()
    return torch.stack(found)


@pytest.mark.parametrize("model", ["wrn10-1", "resnet8", "mlp"])
def test_passes_differ_and_their_mean_probability_is_predicted(model):
    network = network_for(model, passes=4).eval()
    found = passes_of(network, images())
    assert found.shape == (4, 5, 10)
    assert not any(torch.equal(found[i], found[j]) for i in range(4) for j in range(i))
    torch.testing.assert_close(network(images()).softmax(-1), found.softmax(-1).mean(0))


def test_only_dropout_is_in_training_mode_at_test():
    network = network_for()
    network.train()
    network.eval()
    for module in network.modules():
        assert module.training == isinstance(module, nn.Dropout)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    assert norms
    network(images())
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before))
    network.train()
    assert all(module.training for module in network.modules())


def test_predictions_are_a_function_of_images_and_seed():
    network, x = network_for().eval(), images()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = network(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(network(x), first)
    other = network_for(seed=1).eval()
    other.load_state_dict(network.state_dict())
    assert not torch.equal(other(x), first)


def test_training_is_one_pass():
    network, x = network_for(passes=6), images()
    calls = []
    network.model.register_forward_hook(lambda *arguments: calls.append(1))
    logits, labels = network.training_pair(x, torch.arange(5))
    assert (len(calls), logits.shape) == (1, (5, 10))
    assert torch.equal(labels, torch.arange(5))


def test_a_model_without_dropout_layers_is_refused():
    with torch.device("meta"), pytest.raises(InputError, match="has no dropout layers"):
        network_for("torchvision/resnet18", "cifar10")
