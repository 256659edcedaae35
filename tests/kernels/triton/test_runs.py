"""Runs of pixels for strips, against float64: interpreted on a CPU, compiled on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import DEVICE, DTYPES, FLOOR, TILE, Case, guarded, relative_error

from sparse_kernels.index_tensors import forward_index, input_grad_index, slot_index
from sparse_kernels.layout import block_grid
from sparse_kernels.memory_order import in_order
from sparse_kernels.operators.convolution import conv2d
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks

pytestmark = pytest.mark.usefixtures("poisoned_kernels")

CASES = {
    "plain": Case(image=(4, 4)),
    "run ends inside a row": Case(image=(3, 7), batch=2 * TILE),
    "narrower than a run": Case(image=(3, 1)),
    "odd batch": Case(batch=5, image=(3, 6)),
    "channels_last": Case(batch=3, image=(4, 5), order="channels_last"),
    "contiguous": Case(batch=2, image=(2, 9), order="contiguous"),
    "kernel wider than the image": Case(kernel=(1, 7), padding=(0, 3), image=(2, 3)),
    "seven wide": Case(kernel=(2, 7), padding=(1, 2), image=(3, 9), batch=3, density=0.2),
    "two wide, no padding": Case(kernel=(3, 2), padding=(0, 0), image=(4, 6)),
    "much padding": Case(kernel=(1, 3), padding=(2, 4), image=(1, 3)),
    "ragged": Case(channels=(37, 21), batch=4),
    "ragged rows": Case(channels=(40, 24), block=(32, 16)),
    "no power of two": Case(channels=(48, 96), block=(48, 48), batch=3),
    "one strip": Case(density=0.0),
    "unused slots": Case(unused=2, bias=False),
    "full": Case(density=1.0, image=(2, 4), kernel=(1, 3), padding=(0, 1)),
    "strided": Case(stride=(1, 2), image=(3, 5)),
    "dilated": Case(dilation=(1, 2), image=(3, 6), batch=3),
    "one wide": Case(kernel=(3, 1), padding=(1, 0)),
}


def strip_lists(case: Case, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[int]]:
    """Return lists and sizes of random strips in slots in no order, some unused, some rows empty.

    dtype: of the lists that kernels read.
    """
    shape = (*case.channels, *case.kernel)
    *grid, taps = block_grid(shape, case.block)
    mask = torch.rand(grid) < case.density
    if 0 < case.density < 1 and grid[0] > 1:
        mask[0] = False
    mask[-1, 0, 0] = True
    strips = F.pad(mask.flatten().nonzero().flatten(), (0, case.unused), value=mask.numel())
    strips = strips[torch.randperm(len(strips))]
    ids = (strips[:, None] * taps + torch.arange(taps)).flatten().clamp(max=mask.numel() * taps)
    plain, sizes = [ids.int()], [*shape, *case.block]
    read = (forward_index, input_grad_index, slot_index)
    lists = [t.to(dtype) for of_pass in read for t in of_pass(plain, sizes)]
    return [t.to(DEVICE) for t in (*plain, *lists, strips.int())], sizes


def results(x, values, index, sizes, bias, case: Case, grad, dense: bool):
    """Return output and gradients of the operator, or of its dense definition."""
    leaves = [t.detach().requires_grad_() for t in (x, values, bias)]
    geometry = (case.stride, case.padding, case.dilation)
    if dense:
        y = F.conv2d(leaves[0], scatter_blocks(leaves[1], index[:1], sizes), leaves[2], *geometry)
    else:
        y = conv2d(*leaves[:2], index, sizes, *geometry, leaves[2])
    y.backward(grad)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def check(case: Case, dtype: torch.dtype, lists: torch.dtype = torch.int16) -> None:
    """Compare with float64; the error may be twice that of dense PyTorch in the same data type."""
    index, sizes = strip_lists(case, lists)
    make = lambda *shape: torch.randn(*shape).to(DEVICE, dtype)  # noqa: E731
    x = in_order(make(case.batch, case.channels[1], *case.image), case.order)
    values = gather_blocks(make(*sizes[:4]), index[:1], sizes)
    bias = make(case.channels[0])
    grad = in_order(make(case.batch, case.channels[0], *case.output), case.order)
    wide = [t.double() for t in (x, values, bias, grad)]
    exact = results(*wide[:2], index, sizes, wide[2], case, wide[3], dense=True)
    plain = results(x, values, index, sizes, bias, case, grad, dense=True)
    x, values, grad = (guarded(t) for t in (x, values, grad))
    ours = results(x, values, index, sizes, bias, case, grad, dense=False)
    for name, found, dense, right in zip(("y", "dx", "dvalues", "dbias"), ours, plain, exact):
        assert found.isfinite().all(), name
        allowed = 2 * max(relative_error(dense, right), FLOOR[dtype])
        assert relative_error(found, right) <= allowed, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_convolution(name, dtype):
    torch.manual_seed(0)
    check(CASES[name], dtype)
