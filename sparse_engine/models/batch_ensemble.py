"""BatchEnsemble: members share weights up to rank-one factors (Wen et al. 2020, section 3)."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.errors import InputError
from sparse_engine.models.members import MemberNetwork


class RankOneLayer(nn.Module):
    """A convolution or linear layer with weight W * outer(s_i, r_i) and a bias for each member i.

    W is `shared`, dense or sparse; r [M, inputs] multiplies its inputs and s [M, outputs] its
    outputs. Both begin as random signs, and have no weight decay. Image n of N is of the member
    that has it in N images cut into M equal parts (the first ones get what is left over).
    """

    undecayed = ("r", "s")

    def __init__(self, layer: nn.Conv2d | nn.Linear, members: int) -> None:
        super().__init__()
        convolves = isinstance(layer, nn.Conv2d)
        self.channel_dimension = 1 if convolves else -1
        inputs = layer.in_channels if convolves else layer.in_features
        self.r = _random_signs(members, inputs, layer.weight)
        self.s = _random_signs(members, len(layer.weight), layer.weight)
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().repeat(members, 1))
        layer.bias = None
        self.shared = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, inputs, ...] ([N, ..., inputs] for a linear layer) to the layer's outputs."""
        y = self.shared(x * self._spread(self.r, x))
        y = y * self._spread(self.s, y)
        return y if self.bias is None else y + self._spread(self.bias, y)

    def _spread(self, vectors: Tensor, x: Tensor) -> Tensor:
        """Return the vectors [M, C] of each image's member, in the shape of x but for pixels."""
        parts = x.tensor_split(len(vectors))
        rows = torch.cat([v.expand(len(part), -1) for v, part in zip(vectors, parts)])
        shape = [len(x), *[1] * (x.ndim - 1)]
        shape[self.channel_dimension] = vectors.shape[1]
        return rows.to(x.dtype).view(shape)


class MemberBatchNorm(nn.Module):
    """A batch norm for each member, over the images that are its own."""

    def __init__(self, norm: _BatchNorm, members: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _ in range(members))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C, ...]."""
        parts = x.tensor_split(len(self.norms))
        return torch.cat([norm(part) for norm, part in zip(self.norms, parts)])


class BatchEnsemble(MemberNetwork):
    """A model whose layers have members; in training each image is seen by one of them."""

    def __init__(self, model: nn.Module, members: int) -> None:
        """Convert `model`, which must have parameters in layers and batch norms alone.

        Raises:
            InputError: it has others.
        """
        super().__init__(members)
        for module in model.modules():
            own = next(module.parameters(recurse=False), None)
            if own is not None and not _has_members(module):
                raise InputError(
                    f"batch-ensemble cannot give members to a {type(module).__name__}; choose a "
                    "convolutional network with batch norm, such as resnet18"
                )
        _convert(model, members)
        self.model = model

    def training_pair(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, K] and labels [N]: every member has its part of the batch."""
        return self.model(x), y

    def member_logits(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [M, N, K]; every member sees every image."""
        return self.model(torch.cat([x] * self.members)).unflatten(0, (self.members, -1))


def _has_members(module: nn.Module) -> bool:
    return type(module) in (nn.Conv2d, nn.Linear) or isinstance(module, _BatchNorm)


def _convert(module: nn.Module, members: int) -> None:
    for name, child in module.named_children():
        if _has_members(child):
            kind = MemberBatchNorm if isinstance(child, _BatchNorm) else RankOneLayer
            setattr(module, name, kind(child, members))
        else:
            _convert(child, members)


def _random_signs(members: int, count: int, like: Tensor) -> nn.Parameter:
    signs = torch.randint(2, (members, count), device=like.device)
    return nn.Parameter(2.0 * signs.to(like.dtype) - 1)
