"""Other libraries' products of the same linear layer, forward only, where they can run.

Each is a function and the result that it should give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.speed.problems import Problem

Peer = tuple[str, Callable[[], Tensor], Tensor]


def peers(problem: Problem) -> Iterator[Callable[[], Peer]]:
    """Yield functions that build a peer: its name, its forward, what that should give.

    They may raise whatever the other library raises. Only linear layers on a GPU have peers.
    """
    if problem.layer.image or problem.x.device.type != "cuda":
        return
    bo, bc = problem.layout.block
    if bo == bc:
        yield lambda: block_sparse_rows(problem)
    if bo == bc == 128:
        yield lambda: stanford_kernels(problem)
    yield lambda: two_of_four(problem)


def block_sparse_rows(problem: Problem) -> Peer:
    """Return torch.sparse's BSR product."""
    weight = problem.dense.to_sparse_bsr(problem.layout.block)
    right = F.linear(problem.x, problem.dense)
    return "torch BSR", lambda: F.linear(problem.x, weight), right


def two_of_four(problem: Problem) -> Peer:
    """Return the product of PyTorch's semi-structured tensors: two of four weights, density .5.

    Its weights are others than those of the blocks, for no block pattern is such a one.
    """
    weight = torch.randn_like(problem.dense)
    mask = torch.tensor([1, 1, 0, 0], dtype=torch.bool, device=weight.device)
    weight = weight * mask.repeat(weight.shape[0], weight.shape[1] // 4)
    right = F.linear(problem.x, weight)
    packed = torch.sparse.to_sparse_semi_structured(weight)
    return "torch 2:4", lambda: F.linear(problem.x, packed), right


def stanford_kernels(problem: Problem) -> Peer:
    """Return the product of stk (MegaBlocks), which has blocks of 128; not a dependency."""
    import stk

    weight = stk.ops.to_sparse(problem.dense.T.contiguous(), blocking=128)
    right = F.linear(problem.x, problem.dense)
    return "stk", lambda: stk.ops.dds(problem.x, weight), right
