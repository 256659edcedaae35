"""FLOPs of convolution and linear layers, and of training with them (Evci et al. 2020, app. H).

A multiplication and an addition count as two. Sparse layers count their active share; batch-norm,
activations and additions are left out, as in the papers.
"""

import copy
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.surgery import weight_shape
from sparse_engine.models.members import training_pair

COUNTED = (nn.Conv2d, nn.Linear, SparseLayer)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def dense_flops(model: nn.Module, image: Sequence[int]) -> dict[str, int]:
    """Return the forward FLOPs per image of every convolution and linear layer, were it dense.

    Args:
        model: any nn.Module; a copy is run on the meta device, so nothing is computed.
        image: (C, H, W).

    Returns:
        FLOPs by layer name. A layer that forward never calls as a module counts 0.
    """
    twin = copy.deepcopy(model).to("meta").eval()
    _leave_out_norms(twin)
    return _count(twin, lambda: twin(_images(twin, 1, image)))


def training_forward_flops(model: nn.Module, image: Sequence[int], batch: int) -> dict[str, float]:
    """Return the forward FLOPs per image of a training step by layer, were all layers dense.

    A network with a training_pair of its own may use its layers in training more or less often
    than at test: for some members only, or once for several passes.
    """
    if not hasattr(model, "training_pair"):
        return dict(dense_flops(model, image))
    twin = copy.deepcopy(model).to("meta").train()
    labels = torch.zeros(batch, dtype=torch.long, device="meta")
    if batch > 1:  # else norms may be unable to train, which is then told
        _leave_out_norms(twin)
    counts = _count(twin, lambda: twin.training_pair(_images(twin, batch, image), labels))
    return {name: flops / batch for name, flops in counts.items()}


def _leave_out_norms(twin: nn.Module) -> None:
    """Let batch norms return what they are given, of the same shape: they take most of the time."""
    for module in twin.modules():
        if type(module) in _NORMS:
            module.forward = lambda x: x


def _images(model: nn.Module, count: int, image: Sequence[int]) -> Tensor:
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.empty(count, *image, device="meta", dtype=dtype)


def _count(twin: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    counts = {n: 0 for n, m in twin.named_modules() if isinstance(m, COUNTED)}
    for name in counts:
        twin.get_submodule(name).register_forward_hook(_counter(counts, name))
    with torch.no_grad():
        run()
    return counts


def forward_flops(dense: Mapping[str, int], densities: Mapping[str, float]) -> float:
    """Return the forward FLOPs per image, given each sparse layer's density."""
    return sum(flops * densities.get(name, 1.0) for name, flops in dense.items())


def step_flops(
    sparse: float, dense: float, gradient_interval: int | None, gradient_steps: int = 1
) -> float:
    """Return training FLOPs per image: forward, input gradient and weight gradient.

    Args:
        sparse: forward FLOPs of the sparse network (equal to `dense` for a dense one).
        dense: forward FLOPs of the dense network.
        gradient_interval: steps from one topology update that looks at dense weight gradients to
            the next, None without them.
        gradient_steps: steps before each update that collect them.
    """
    if gradient_interval is None:
        return 3 * sparse
    return 3 * sparse + (dense - sparse) * min(1.0, gradient_steps / (gradient_interval + 1))


def _counter(counts: dict[str, int], name: str):
    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = weight_shape(module)
        counts[name] += 2 * math.prod(shape) * (output.numel() // shape[0])

    return count


@dataclass(frozen=True)
class LayerCall:
    """One call of a dense layer; calls that compare equal take equally long.

    layer: as print(module) shows it; sizes: of its input; positions: vectors of output channels;
    input_gradient: whether backward goes on beyond it.
    """

    layer: str
    sizes: tuple[int, ...]
    positions: int
    input_gradient: bool


def layer_calls(
    model: nn.Module, image: Sequence[int], batch: int, names: Container[str]
) -> dict[str, list[LayerCall]]:
    """Return the calls of some layers in one training step, by layer name.

    Args:
        model: dense; a copy of it is run on the meta device, so nothing is computed.
        image: (C, H, W).
        batch: images a step.
        names: of nn.Conv2d and nn.Linear modules. One that is never called as a module has none.
    """
    twin = copy.deepcopy(model).to("meta").train()
    found: dict[str, list[LayerCall]] = {n: [] for n, _ in twin.named_modules() if n in names}

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, channels = inputs[0], weight_shape(module)[0]
            positions = output.numel() // channels
            found[name].append(LayerCall(str(module), tuple(x.shape), positions, x.requires_grad))

        return hook

    for name in found:
        twin.get_submodule(name).register_forward_hook(note(name))
    labels = torch.zeros(batch, dtype=torch.long, device="meta")
    with torch.enable_grad():
        training_pair(twin, torch.empty(batch, *image, device="meta"), labels)
    return found
