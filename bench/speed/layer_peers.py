"""What a user would pick for a layer on a CPU instead of our kernels, as the same three passes.

Each contender has forward, input gradient and weight gradient. Images lie in channels_last.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench.speed.problems import (
    Passes,
    Problem,
    blocks_of,
    dense_passes,
    make_problem,
    sparse_passes,
)
from bench.speed.slim import slim_channels
from bench.speed.variant import Unavailable

# Blocks below are so narrow that one dense product is faster than one for each block, on copies.
WIDE = 32


def compiled_passes(problem: Problem) -> Passes:
    """Return the dense passes, each by torch.compile."""
    return {name: torch.compile(run) for name, run in dense_passes(problem).items()}


def bf16_passes(problem: Problem) -> Passes:
    """Return the dense passes as autocast to bf16 runs them inside a network.

    Activations are in bf16 already; the weight is cast in the forward, and its gradient back.
    """
    names = ("x", "grad", "dense")
    half = replace(problem, **{name: getattr(problem, name).bfloat16() for name in names})
    passes, weight = dense_passes(half), problem.dense

    def forward() -> Tensor:
        weight.to(torch.bfloat16)  # what is multiplied with is the same, cast before
        return passes["forward"]()

    return {
        **passes,
        "forward": forward,
        "weight gradient": lambda: passes["weight gradient"]().to(weight.dtype),
    }


def slim_passes(problem: Problem) -> Passes:
    """Return the passes of a dense layer of as many FLOPs, with fewer channels on both sides."""
    layer, scale = problem.layer, problem.layout.density**0.5
    outputs, inputs = (slim_channels(channels, scale) for channels in layer.weight[:2])
    slim = replace(layer, weight=(outputs, inputs, *layer.weight[2:]))
    return dense_passes(make_problem(slim, (1, 1), 1.0, problem.x.device.type, problem.x.dtype))


def block_sparse_row_passes(problem: Problem) -> Passes:
    """Return the passes of a linear layer by torch.sparse, with its blocks as BSR (1x1: CSR).

    PyTorch has no backward of it on a CPU: the input gradient multiplies by the transposed weight,
    whose values are put in order each time. The weight gradient is made of the stored blocks' own
    products, or of narrow blocks by one dense product.

    Raises:
        Unavailable: PyTorch has no such layer.
    """
    if problem.layer.image:
        raise Unavailable("PyTorch has no convolution with BSR weights")
    if problem.x.dtype != torch.float32:
        raise Unavailable("MKL multiplies BSR weights in fp32 only")
    block, x, grad = problem.layout.block, problem.x, problem.grad
    weight = _compressed(problem.dense, block)
    transposed = _compressed(problem.dense.T, block[::-1])
    order = _order_of_transposed(problem, transposed)

    def input_gradient() -> Tensor:
        values = weight.values()[order]
        transposed.values().copy_(values.transpose(1, 2) if values.ndim > 1 else values)
        return (transposed @ grad.T).T

    products = _products_of_blocks if min(block) >= WIDE else _taken_from_dense
    return {
        "forward": lambda: (weight @ x.T).T,
        "input gradient": input_gradient,
        "weight gradient": products(problem, weight),
    }


PEERS: dict[str, Callable[[Problem], Passes]] = {
    "dense": dense_passes,
    "dense compiled": compiled_passes,
    "dense bf16": bf16_passes,
    "slim": slim_passes,
    "BSR": block_sparse_row_passes,
    "masked": partial(sparse_passes, order="channels_last", backend="masked"),
    "native": partial(sparse_passes, order="channels_last", backend="native"),
}


def _compressed(weight: Tensor, block: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|BSR) tensor support is in beta")
        if block == (1, 1):
            return weight.to_sparse_csr()
        return weight.contiguous().to_sparse_bsr(block)


def _order_of_transposed(problem: Problem, transposed: Tensor) -> Tensor:
    """Return, for each block of the transposed weight, its place in the weight's own order."""
    columns = problem.layer.weight[1] // problem.layout.block[1]
    rows_of_transposed, columns_of_transposed = _places(transposed)
    own = columns_of_transposed * columns + rows_of_transposed
    return own.argsort().argsort()


def _places(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column of each stored block of a BSR or CSR weight."""
    counts = weight.crow_indices().diff()
    return torch.arange(len(counts)).repeat_interleave(counts), weight.col_indices()


def _products_of_blocks(problem: Problem, weight: Tensor) -> Callable[[], Tensor]:
    (bo, bc), (rows, columns) = problem.layout.block, _places(weight)

    def weight_gradient() -> Tensor:
        grads = problem.grad.unflatten(1, (-1, bo)).permute(1, 2, 0)
        inputs = problem.x.unflatten(1, (-1, bc)).transpose(0, 1)
        return torch.bmm(grads[rows], inputs[columns])

    return weight_gradient


def _taken_from_dense(problem: Problem, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: blocks_of(problem.grad.T @ problem.x, problem.layout)
