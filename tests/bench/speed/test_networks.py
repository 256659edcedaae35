"""The networks that are timed."""

import pytest
import torch
from torch import nn

from bench.speed.networks import NETWORKS, network_of
from sparse_engine.errors import InputError


@pytest.mark.parametrize("name", ["vit-layer", "vit-s", "gpt2-block", "mlp-4096"])
def test_networks_of_linear_layers_are_all_layers(name):
    model = NETWORKS[name].make()
    assert any(isinstance(module, nn.Linear) for module in model.modules())
    with torch.device("meta"):
        x = torch.empty(2, *NETWORKS[name].image)
    assert model.to("meta")(x).shape == (2, 10)


def test_other_models_take_images_as_cifars():
    assert network_of("wrn16-2").image == (3, 32, 32)
    with pytest.raises(InputError, match="unknown model"):
        network_of("wrm28-10")
