"""Networks that are exported, with every kind of sparse layer between them, and inputs."""

import torch
from exported_networks import network
from grouped_networks import Odd, members
from torch import nn

from sparse_engine import SparseConv2d, SparseLinear, TicketEnsemble, fuse, sparsify
from sparse_engine.layers.other_kinds import SparseConv1d, SparseTransposedLinear

KINDS = {"density": 0.5, "block": (16, 16)}


class EveryLayer(nn.Module):
    """Blocks with ragged edges and of single weights, all taps rules, one dimension and two."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            SparseConv2d(20, 40, 3, padding=1, **KINDS),
            SparseConv2d(40, 24, (1, 3), padding="same", taps="row", **KINDS),
            SparseConv2d(24, 40, 3, stride=2, padding=1, taps="all", bias=False, **KINDS),
            SparseConv2d(40, 20, 3, padding=2, dilation=2, padding_mode="reflect", density=0.2,
                         block=(1, 1)),
        )  # fmt: skip
        self.one_dimension = SparseConv1d(20, 24, 3, padding=1, **KINDS)
        self.linears = nn.Sequential(
            SparseLinear(24, 40, **KINDS), SparseTransposedLinear(40, 20, **KINDS)
        )

    def forward(self, x):
        x = torch.relu(self.convolutions(x)).flatten(2)
        return self.linears(torch.relu(self.one_dimension(x)).transpose(1, 2)).mean(1)


def every_layer():
    """Return one, whose layers have spare slots too."""
    model = EveryLayer()
    with torch.no_grad():
        for layer in (*model.convolutions, *model.linears):
            layout = layer.layout
            layer.change_blocks_(layout.block_ids.roll(1), layout.active)
    return model


def attention():
    """Return a transformer layer with sparse projections."""
    layer = nn.TransformerEncoderLayer(32, 2, 48, dropout=0.0, batch_first=True)
    sparsify(layer, 0.5, block=(16, 16))
    return layer


def fused():
    """Return a network in fused passes."""
    return fuse(network())


NETWORKS = {
    "every layer": (every_layer, (20, 9, 8)),
    "every layer, bf16": (lambda: every_layer().bfloat16(), (20, 9, 8)),
    "attention": (attention, (5, 32)),
    "fused": (fused, (1, 8, 8)),
    "ensemble": (lambda: TicketEnsemble(members(Odd)), (3, 8, 8)),
    "grouped ensemble": (lambda: TicketEnsemble(members(Odd), grouped=True), (3, 8, 8)),
}


def exported(name):
    """Return a network in eval mode by its name here, and inputs for it, two and five."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    dtype = next(model.parameters()).dtype
    return model, [torch.randn(count, *shape).to(dtype) for count in (2, 5)]
