"""What PyTorch's own convolutions compute in a network in rows, they are given as channels_last.

Each of x, y and their gradients is copied once on its way there and back, and the library's kernels
never see rows, which cuDNN would take for NCHW.
"""

import copy
import itertools
from collections import Counter

import pytest
import torch
from nodes import names
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_engine import SparseConv2d, to_rows
from sparse_engine.models.grouped.layers import GroupedSparseConv2d
from sparse_kernels import BlockLayout
from sparse_kernels.memory_order import in_order, order_of
from sparse_kernels.operators import reference

IMAGES = (4, 16, 6, 5)


@pytest.fixture(autouse=True)
def _masked(monkeypatch):
    monkeypatch.setenv("SPARSE_ENGINE_BACKEND", "masked")
    torch.manual_seed(0)


class Relayouts(TorchDispatchMode):
    """Counts copies to another order by size, and notes the orders that convolutions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.copies, self.orders = Counter(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "sparse_kernels":
            with self:  # look into it
                inside = torch._C.DispatchKey.CompositeExplicitAutograd
                return function._op_dk(inside, *args, **(kwargs or {}))
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name.startswith("convolution"):
            images = args[:2] if name == "convolution_backward" else args[:1]
            self.orders |= {order_of(image) for image in images}
        before = args[1] if name == "copy_" else args[0] if args else None
        if name in ("clone", "copy_", "_to_copy") and before.stride() != out.stride():
            self.copies[before.numel()] += 1
        return out


def step(layer: nn.Module, x: torch.Tensor):
    """Return what is counted in a forward and a backward, and its results."""
    x = x.detach().requires_grad_()
    grad = in_order(torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(1)), "rows")
    with Relayouts() as found:
        y = layer(x)
        y.backward(grad)
    return found, {"y": y.detach(), "dx": x.grad, "dw": [p.grad for p in layer.parameters()]}


def grouped() -> GroupedSparseConv2d:
    """Two members' layers of 16 -> 16 channels between 8 -> 8 of each."""
    ids = torch.tensor([0, 5, 27, 31])
    layout = BlockLayout((32, 16, 3, 3), (16, 8), ids)
    layer = GroupedSparseConv2d(16, 32, 3, padding=1, layout=layout)
    layer.stacked = 2
    return layer


def armed(layer: SparseConv2d) -> SparseConv2d:
    layer.collect()
    return layer


LAYERS = {
    "masked": lambda: SparseConv2d(16, 32, 3, padding=1, density=0.3, block=(16, 16)),
    "strided": lambda: SparseConv2d(16, 32, 3, 2, 1, bias=False, density=0.3, block=(16, 16)),
    "single weights": lambda: SparseConv2d(16, 32, 1, density=0.3, block=(1, 1)),
    "armed": lambda: armed(SparseConv2d(16, 32, 3, padding=1, density=0.3, block=(16, 16))),
    "grouped": grouped,
    "dense": lambda: nn.Conv2d(16, 32, 3, padding=1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_image_is_copied_once(name):
    plain = LAYERS[name]()
    layer = copy.deepcopy(plain)
    if name == "dense":
        to_rows(layer)
    if name == "armed":
        layer.collect()
    x = in_order(torch.randn(IMAGES), "rows")
    found, results = step(layer, x)
    assert found.orders == {"channels_last"}
    # The input and its gradient, the output and its gradient.
    assert [found.copies[results[image].numel()] for image in ("dx", "y")] == [2, 2]
    assert {order_of(results[image]) for image in ("y", "dx")} == {"rows"}
    _, expected = step(plain, x.contiguous())
    for key, right in expected.items():
        torch.testing.assert_close(results[key], right, rtol=1e-4, atol=1e-5)
    if name == "armed":
        torch.testing.assert_close(layer.stop(), plain.stop(), rtol=1e-4, atol=1e-5)


def test_a_relu_in_place_and_second_derivatives():
    layer = nn.Sequential(
        SparseConv2d(2, 3, 2, density=0.5, block=(1, 1)), nn.ReLU(inplace=True)
    ).double()
    x = in_order(torch.randn(2, 2, 4, 3, dtype=torch.float64), "rows").requires_grad_()
    found = names(layer(x))
    assert "CopySlices" not in found
    assert "_ReorderedBackward" in found
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("name", ["masked", "dense", "armed"])
def test_compiled_in_one_graph(name):
    layer = LAYERS[name]()
    model = nn.Sequential(to_rows(layer), nn.ReLU(inplace=True))
    x = in_order(torch.randn(IMAGES), "rows")
    found = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        y.square().sum().backward()
        found.append((y.detach(), leaf.grad))
    for eager, compiled in zip(*found):
        torch.testing.assert_close(eager, compiled)
        assert eager.stride() == compiled.stride()


def test_definitions_give_the_library_no_rows():
    """Whoever calls them directly: definitions of fused operators, probes, tests."""
    layout = BlockLayout((32, 16, 3, 3), (16, 16), torch.arange(5))
    values, index, sizes = torch.randn(5, 16, 16), layout.tensors(), layout.sizes()
    geometry = ((1, 1), (1, 1), (1, 1))
    x, dy = torch.randn(IMAGES), torch.randn(4, 32, 6, 5)
    first = None
    for orders in itertools.product(("contiguous", "rows"), repeat=2):
        a, b = in_order(x, orders[0]), in_order(dy, orders[1])
        with Relayouts() as found:
            results = (
                reference.conv2d(a, values, None, index, sizes, *geometry),
                reference.conv2d_input_grad(b, values, index, sizes, x.shape[2:], *geometry),
                reference.conv2d_weight_grad(a, b, index, sizes, *geometry),
                reference.conv2d_dense_weight_grad(a, b, sizes, *geometry),
            )
        assert "rows" not in found.orders
        first = first or results
        for result, expected in zip(results, first):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
