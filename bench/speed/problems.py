"""What the benchmarks of layers time: layers with random blocks, our passes and others'."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.dispatch.backend import forced_backend
from sparse_kernels.layout import block_grid, group_size
from sparse_kernels.memory_order import in_order
from sparse_kernels.operators import convolution, linear
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks

Passes = dict[str, Callable[[], Tensor]]  # "forward", "input gradient", "weight gradient"
# Another library's product of a linear layer: its name, its forward, and what that should give.
Peer = tuple[str, Callable[[], Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer to time: weight (O, C, R, S), image (H, W) and batch; no image: a linear one.

    taps: "each", or "row" for strips, as of a BlockLayout.
    """

    name: str
    weight: tuple[int, ...]
    image: tuple[int, ...]
    batch: int
    cpu_batch: int = 128
    stride: int = 1
    taps: str = "each"

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        """Stride, padding and dilation, with which an image shrinks by the stride alone."""
        return [self.stride] * 2, [self.weight[2] // 2 if self.image else 0] * 2, [1, 1]


@dataclass(frozen=True)
class Problem:
    """One layer with one choice of blocks, and what its passes read."""

    layer: Layer
    layout: BlockLayout
    x: Tensor
    values: Tensor
    grad: Tensor
    dense: Tensor

    @property
    def positions(self) -> int:
        """Vectors of output channels."""
        return self.grad.numel() // self.layer.weight[0]


def make_problem(
    layer: Layer,
    block: tuple[int, int],
    density: float,
    device: str,
    dtype: torch.dtype | None = None,
) -> Problem:
    """Return random blocks at a density, and random inputs, in bf16 (fp32 on a CPU)."""
    torch.manual_seed(0)
    dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
    group = group_size(layer.weight, layer.taps)
    total = math.prod(block_grid(layer.weight, block)) // group
    groups = torch.randperm(total)[: max(1, round(density * total))]
    ids = (groups[:, None] * group + torch.arange(group)).flatten()
    layout = BlockLayout(layer.weight, block, ids, taps=layer.taps).to(device)
    weight = torch.randn(layout.shape, device=device, dtype=dtype)
    values = blocks_of(weight, layout)
    batch = layer.batch if device == "cuda" else layer.cpu_batch
    out = [-(-size // layer.stride) for size in layer.image]
    x = torch.randn(batch, layer.weight[1], *layer.image, device=device, dtype=dtype)
    grad = torch.randn(batch, layer.weight[0], *out, device=device, dtype=dtype)
    dense = scatter_blocks(values, layout.tensors(), layout.sizes()).view(layer.weight)
    return Problem(layer, layout, x, values, grad, dense)


def blocks_of(weight: Tensor, layout: BlockLayout) -> Tensor:
    """Return the stored blocks of a dense weight, in the order of a layout's values."""
    return gather_blocks(weight.reshape(layout.shape), layout.tensors(), layout.sizes())


def right_results(problem: Problem) -> dict[str, Tensor]:
    """Return what the passes should give, by the dense library."""
    results = {name: run() for name, run in dense_passes(problem).items()}
    blocks = blocks_of(results["weight gradient"], problem.layout)
    return results | {"weight gradient": blocks}


def dense_passes(problem: Problem) -> Passes:
    """Return the dense library's three passes."""
    x, weight, grad = problem.x, problem.dense, problem.grad
    if not problem.layer.image:
        return {
            "forward": lambda: F.linear(x, weight),
            "input gradient": lambda: grad @ weight,
            "weight gradient": lambda: grad.T @ x,
        }
    x, weight, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight, grad))
    geometry = problem.layer.geometry

    def backward(which: int) -> Callable[[], Tensor]:
        wanted = [which == 0, which == 1, False]
        return lambda: torch.ops.aten.convolution_backward(
            grad, x, weight, None, *geometry, False, [0, 0], 1, wanted
        )[which]

    return {
        "forward": lambda: F.conv2d(x, weight, None, *geometry),
        "input gradient": backward(0),
        "weight gradient": backward(1),
    }


def sparse_passes(problem: Problem, order: str, backend: str = "auto") -> Passes:
    """Return our three passes on a backend, with activations in an order."""
    layout, values, layer = problem.layout, problem.values, problem.layer
    index, sizes = layout.tensors(), layout.sizes()
    if layer.image:
        x, grad = in_order(problem.x, order), in_order(problem.grad, order)
        image, geometry = list(layer.image), layer.geometry
        passes = {
            "forward": partial(block_conv2d, x, values, layout, None, *geometry),
            "input gradient": partial(
                convolution.conv2d_input_grad, grad, values, index, sizes, image, *geometry
            ),
            "weight gradient": partial(
                convolution.conv2d_weight_grad, x, grad, index, sizes, *geometry
            ),
        }
    else:
        x, grad = problem.x, problem.grad
        passes = {
            "forward": partial(block_linear, x, values, layout),
            "input gradient": partial(linear.linear_input_grad, grad, values, index, sizes),
            "weight gradient": partial(linear.linear_weight_grad, x, grad, index, sizes),
        }
    return {name: partial(_run_on, backend, run) for name, run in passes.items()}


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


def _run_on(backend: str, run: Callable[[], Tensor]) -> Tensor:
    with forced_backend(backend):
        return run()
