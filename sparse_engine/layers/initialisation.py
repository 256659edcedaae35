"""Initial weights drawn for the connections that a sparse layer has.

Source: Evci, Ioannou, Keskin, Dauphin, *Gradient Flow in Sparse Neural Networks and How Lottery
Tickets Win*, AAAI 2022, section 3.
"""

import torch
from torch import Tensor, nn

from sparse_engine.layers.base import SparseLayer
from sparse_engine.shards import write_
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks


def active_fan_in(layer: SparseLayer) -> Tensor:
    """Return how many weights of each output channel are active, float32 [O]; padding counts not.

    It is the same for all channels of a row of blocks.
    """
    layout = layer.layout
    ones = torch.ones(layer.values.shape, device=layout.device)
    return scatter_blocks(ones, layout.tensors(), layout.sizes()).sum((1, 2, 3))


@torch.no_grad()
def draw_by_fan_in(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the weights of all sparse layers again, in place, from N(0, 2 / active fan-in).

    The fan-in is that of the weight's own output channel, so that signals keep their variance
    through ReLU layers, however few blocks a channel has. Biases and dense layers stay as they are.

    Args:
        model: after sparsify, on any device but meta.
        generator: on the CPU; the default one unless given.
    """
    for layer in model.modules():
        if isinstance(layer, SparseLayer):
            layout, values = layer.layout, layer.values
            # A channel without any block has no weight to divide.
            deviation = (2 / active_fan_in(layer).clamp(min=1)).sqrt()[:, None, None, None]
            dense = torch.randn(layout.shape, generator=generator, device="cpu")
            dense = dense.to(layout.device) * deviation
            write_(values, gather_blocks(dense, layout.tensors(), layout.sizes()))
