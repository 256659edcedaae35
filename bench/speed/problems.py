"""What the kernel benchmark times: layers with random blocks, and their three passes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.dispatch.backend import forced_backend
from sparse_kernels.layout import block_grid
from sparse_kernels.memory_order import in_order
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks


@dataclass(frozen=True)
class Layer:
    """A layer to time: weight (O, C, R, S), image (H, W) and batch; H = 0 for a linear one."""

    name: str
    weight: tuple[int, ...]
    image: tuple[int, ...]
    batch: int
    cpu_batch: int = 128


@dataclass(frozen=True)
class Problem:
    """One layer with one choice of blocks, and what its passes should give."""

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


def make_problem(layer: Layer, block: tuple[int, int], density: float, device: str) -> Problem:
    """Return random blocks at a density, and random inputs, in bf16 (fp32 on a CPU)."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    mask = torch.rand(block_grid(layer.weight, block)) < density
    mask.view(-1)[0] = True
    layout = BlockLayout.from_mask(mask, layer.weight, block).to(device)
    weight = torch.randn(layout.shape, device=device, dtype=dtype)
    values = gather_blocks(weight, layout.tensors(), layout.sizes())
    batch = layer.batch if device == "cuda" else layer.cpu_batch
    x = torch.randn(batch, layer.weight[1], *layer.image, device=device, dtype=dtype)
    grad = torch.randn(batch, layer.weight[0], *layer.image, device=device, dtype=dtype)
    dense = scatter_blocks(values, layout.tensors(), layout.sizes()).view(layer.weight)
    return Problem(layer, layout, x, values, grad, dense)


def dense_passes(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """Return the dense library's three passes."""
    x, weight, grad = problem.x, problem.dense, problem.grad
    if not problem.layer.image:
        return {
            "forward": lambda: F.linear(x, weight),
            "input gradient": lambda: grad @ weight,
            "weight gradient": lambda: grad.T @ x,
        }
    x, weight, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight, grad))
    pad = problem.layer.weight[2] // 2

    def backward(which: int) -> Callable[[], Tensor]:
        wanted = [which == 0, which == 1, False]
        return lambda: torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, wanted
        )[which]

    return {
        "forward": lambda: F.conv2d(x, weight, None, 1, pad),
        "input gradient": backward(0),
        "weight gradient": backward(1),
    }


def sparse_passes(
    problem: Problem, order: str, backend: str = "auto"
) -> dict[str, Callable[[], Tensor]]:
    """Return our three passes on a backend, with activations in an order."""
    passes = _passes(problem, order)
    return {name: functools.partial(_run_on, backend, run) for name, run in passes.items()}


def _run_on(backend: str, run: Callable[[], Tensor]) -> Tensor:
    with forced_backend(backend):
        return run()


def _passes(problem: Problem, order: str) -> dict[str, Callable[[], Tensor]]:
    from sparse_kernels.operators import convolution, linear

    index, sizes = problem.layout.tensors(), problem.layout.sizes()
    x, values, grad = problem.x, problem.values, problem.grad
    if not problem.layer.image:
        return {
            "forward": lambda: block_linear(x, values, problem.layout),
            "input gradient": lambda: linear.linear_input_grad(grad, values, index, sizes),
            "weight gradient": lambda: linear.linear_weight_grad(x, grad, index, sizes),
        }
    x, grad = in_order(x, order), in_order(grad, order)
    pad, one = [problem.layer.weight[2] // 2] * 2, [1, 1]
    image = list(problem.layer.image)
    return {
        "forward": lambda: block_conv2d(x, values, problem.layout, padding=pad),
        "input gradient": lambda: convolution.conv2d_input_grad(
            grad, values, index, sizes, image, one, pad, one
        ),
        "weight gradient": lambda: convolution.conv2d_weight_grad(
            x, grad, index, sizes, one, pad, one
        ),
    }
