"""Whole models in rows order, HWNC: images [N, C, H, W] lie as [H, W, N, C] in memory.

Element-wise operators keep the order of their input. Batch norm, pooling and dense convolutions do
not, nor do the gradients of means and pads. `to_rows` gives the former a forward on a view that
their kernels take as channels_last, and checks the output of every module inside the model: what
arrives there in another order, forward or backward, is copied once. "Rows" is that order in all
names here, and nothing else.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.tables import format_table
from sparse_kernels.memory_order import in_order, order_of, reordered


class RowsBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d that takes all images for one: [1, C, H, W * N]."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C, H, W]; the result is in rows."""
        return _on_one_image(super().forward, x, channels=x.shape[1])


class _RowsPool(nn.Module):
    """A pooling that takes all images for channels of one: [1, N * C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, P, Q], in rows."""
        return _on_one_image(super().forward, x, channels=math.prod(x.shape[:2]))


class RowsMaxPool2d(_RowsPool, nn.MaxPool2d):
    """nn.MaxPool2d on one image."""


class RowsAvgPool2d(_RowsPool, nn.AvgPool2d):
    """nn.AvgPool2d on one image."""


class RowsAdaptiveAvgPool2d(_RowsPool, nn.AdaptiveAvgPool2d):
    """nn.AdaptiveAvgPool2d on one image; a mean over all pixels without it."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, P, Q], in rows."""
        if x.ndim == 4 and self.output_size in (1, (1, 1), [1, 1]):
            # PyTorch takes this mean too, but over inner dimensions: its gradient is contiguous.
            return _pixels(x).mean((0, 1), keepdim=True).permute(2, 3, 0, 1)
        return super().forward(x)


class RowsConv2d(nn.Conv2d):
    """nn.Conv2d that copies its input to channels_last, which its kernels want, and back."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, O, P, Q], in rows."""
        if x.ndim != 4:
            return super().forward(x)
        image = reordered(x, "channels_last", "rows")
        return reordered(super().forward(image), "rows", "channels_last")


_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.AdaptiveAvgPool2d: RowsAdaptiveAvgPool2d,
    nn.AvgPool2d: RowsAvgPool2d,
    nn.BatchNorm2d: RowsBatchNorm2d,
    nn.Conv2d: RowsConv2d,
    nn.MaxPool2d: RowsMaxPool2d,
}


def to_rows(model: nn.Module) -> nn.Module:
    """Make a convolutional network keep its activations in rows order, in place.

    Parameters, buffers, state-dict keys and numbers stay as they are; copies, pickles and
    optimizers of the model work as before. Call it after `sparsify`, which leaves the dense
    convolutions alone afterwards. A second call changes nothing but modules added since.

    Args:
        model: takes images [N, C, H, W] in any order as positional arguments.

    Returns:
        The model. `torch.compile` keeps its numbers, and chooses the order of gradients itself.
    """
    for module in model.modules():
        kind = _REPLACEMENTS.get(type(module))
        if kind and not getattr(module, "return_indices", False):
            module.__class__ = kind
        # Not on the model itself, whose hooks torch.compile runs outside of its graph.
        if module is not model and output_in_rows not in module._forward_hooks.values():
            module.register_forward_hook(output_in_rows)
    if not is_in_rows(model):
        model.register_forward_pre_hook(_input_in_rows)
    return model


def is_in_rows(model: nn.Module) -> bool:
    """Return whether to_rows was called on a model."""
    return _input_in_rows in model._forward_pre_hooks.values()


def orders(model: nn.Module, x: Tensor) -> str:
    """Return a table of the orders that each layer meets in a forward and a backward.

    A copy of the model is run, so the model stays as it is. The table shows what a layer is given
    and what it gives before `to_rows` corrects it: each cell other than "rows" is a copy that is
    made there, besides those that every RowsConv2d makes. Tensors that fit several orders count
    as rows; "-" is no image or no gradient. Fused blocks run as they did before `fuse`.

    Args:
        model: returns a tensor.
        x: images [N, C, H, W].
    """
    twin = copy.deepcopy(model)
    leaves = {n: m for n, m in twin.named_modules() if next(m.children(), None) is None}
    columns = ("input", "output", "output gradient", "input gradient")
    seen: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in leaves}
    for name, module in leaves.items():
        _watch(module, seen[name])
    with torch.enable_grad():
        y = twin(x.detach())
        if y.requires_grad:
            y.sum().backward()
    table: list[tuple[str, ...]] = [("layer", "kind", *columns)]
    for name, module in leaves.items():
        cells = ("/".join(dict.fromkeys(seen[name][column])) or "-" for column in columns)
        table.append((name or "-", type(module).__name__, *cells))
    return format_table(table)


def _pixels(x: Tensor) -> Tensor:
    """Return x [N, C, H, W] as [H, W, N, C], contiguous; a view if x is in rows."""
    return in_order(x, "rows").permute(2, 3, 0, 1)


def _on_one_image(forward: Callable[[Tensor], Any], x: Tensor, channels: int) -> Tensor:
    """Apply `forward` to x [N, C, H, W] seen as one channels_last image of so many channels."""
    if x.ndim != 4 or x.numel() == 0:
        return forward(x)
    images, depth, height, _ = x.shape
    image = _pixels(x).view(1, height, -1, channels).permute(0, 3, 1, 2)
    y = forward(image).permute(0, 2, 3, 1)
    y = y.reshape(y.shape[1], -1, images, depth).permute(2, 3, 0, 1)
    # No view to autograd, which copies a view and its gradient where a ReLU changes it in place.
    return torch.ops.aten._unsafe_view(y, y.shape)


def _is_images(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 4


def _images_in_rows(x: Any) -> Any:
    """Return x in rows if it is images; a second derivative may be None, other things pass."""
    return in_order(x, "rows") if _is_images(x) else x


def _input_in_rows(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(_images_in_rows, arguments))


def output_in_rows(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
    """Bring images that a module gives into rows, and their gradient when it arrives."""
    output = _images_in_rows(output)
    # A hook rather than a function of autograd, whose result no in-place ReLU may change.
    if _is_images(output) and not torch.compiler.is_compiling() and output.grad_fn is not None:
        output.register_hook(_images_in_rows)
    return output


def _watch(module: nn.Module, seen: dict[str, list[str]]) -> None:
    """Note the orders of the images and gradients that pass a module."""

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(own(x) if _is_images(x) else x for x in arguments)

    def own(x: Tensor) -> Tensor:
        note(x, "input")
        # Of x itself the gradient is a sum over all layers that read it.
        x = x.clone() if getattr(module, "inplace", False) else x.view_as(x)
        return noting_gradient(x, "input gradient")

    def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if _is_images(output):
            note(output, "output")
            noting_gradient(output, "output gradient")

    def note(x: Tensor, column: str) -> None:
        fits = x.permute(2, 3, 0, 1).is_contiguous()
        seen[column].append("rows" if fits else order_of(x))

    def noting_gradient(x: Tensor, column: str) -> Tensor:
        if x.requires_grad:
            x.register_hook(lambda gradient: note(gradient, column))
        return x

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, prepend=True)
