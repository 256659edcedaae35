"""Single steps of small networks on random images."""

import torch
import torch.nn.functional as F

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import TABLE
from sparse_engine.methods.resolve import resolve
from sparse_engine.training.network import build_network

CPU = torch.device("cpu")


def network_for(**settings):
    settings = {"method": "rigl", "model": "wrn10-1", "block": "8x8", "sparsity": 0.5, **settings}
    return build_network(resolve(Config(**settings)), TABLE["digits"], CPU)


def batches(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        images = torch.randn(16, 1, 8, 8, generator=generator)
        yield images, torch.randint(10, (16,), generator=generator)


def cross_entropy(x, logits, labels):
    return F.cross_entropy(logits.float(), labels)


def everything(network):
    """Return all that training changes: weights, statistics, momenta and blocks."""
    parts = {f"model.{k}": v for k, v in network.model.state_dict().items()}
    for number, state in enumerate(network.optimizer.state.values()):
        parts[f"momentum.{number}"] = state["momentum_buffer"]
    return parts
