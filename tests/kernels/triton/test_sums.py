"""What passes write by tile and share, put together: against float64, and nn.BatchNorm2d."""

import copy

import pytest
import torch
from kernel_cases import DEVICE, guarded, relative_error
from torch import nn

from sparse_kernels.operators.batch_norm import tile_statistics
from sparse_kernels.triton.sums import Running, TileSums, added, statistics

pytestmark = pytest.mark.usefixtures("poisoned_kernels")

# Shares of gradients and tiles of images.
SIZES = [
    ((2, 1, 16, 16), (1, 2, 5)),
    ((33, 3, 16, 48), (257, 2, 70)),
    ((9, 1, 16, 32), (600, 2, 16)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("shares", "tiles"), SIZES)
def test_two_sums_in_one_launch_or_alone(shares, tiles, dtype):
    torch.manual_seed(0)
    partial, sums = (guarded(torch.randn(shape, device=DEVICE)) for shape in (shares, tiles))
    gradient, totals = added(partial, dtype, sums)
    assert (gradient.dtype, totals.dtype) == (dtype, torch.float32)
    floor = {torch.float32: 1e-6, torch.float16: 5e-4}[dtype]
    assert relative_error(gradient, partial.double().sum(0)) <= floor
    assert relative_error(totals, sums.double().sum(0)) <= 1e-6
    for found, alone in (
        ((gradient, None), added(partial, dtype, None)),
        ((None, totals), added(None, dtype, sums)),
    ):
        assert all(a is b or torch.equal(a, b) for a, b in zip(found, alone))


def test_a_single_share_is_the_gradient():
    gradient = torch.randn(3, 16, 16, device=DEVICE).half()
    assert added(gradient, torch.float16, None) == (gradient, None)


@pytest.mark.parametrize("positions", [1, 15, 16, 17, 1000, 4096, 4097])
@pytest.mark.parametrize("size", [16, 128])
def test_how_many_positions_a_tile_has_follows_from_their_number(positions, size):
    torch.manual_seed(0)
    x = torch.randn(positions, 3).double() + 5
    tiles = [torch.stack([t.mean(0), t.var(0, correction=0)]) for t in x.split(size)]
    sums = TileSums(torch.stack(tiles).float().to(DEVICE), positions)
    mean, variance = sums.joined().sums[0].cpu()
    torch.testing.assert_close(mean.double(), x.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), x.var(0, correction=0), rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (9, 70, 4, 5)])
def test_a_batch_norm_and_its_running_statistics(shape, dtype):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(shape[1], eps=0.01, momentum=0.3).to(DEVICE)
    for vector in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(vector)
    wide = copy.deepcopy(norm).double()
    norm.to(dtype)
    buffers = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    versions = [buffer._version for buffer in buffers]
    for _ in range(2):
        x = torch.randn(shape, device=DEVICE) + 3
        found = tile_statistics(x).batch_norm(
            norm.weight, norm.bias, norm.eps, Running(*buffers, norm.momentum)
        )
        z = wide(x.double()).detach()
    assert not any(vector.requires_grad for vector in found)
    mean, variance, scale, shift = found
    tolerance = {torch.float32: 2e-6, torch.float16: 3e-3}[dtype]
    assert relative_error(x * scale[:, None, None] + shift[:, None, None], z) <= tolerance
    assert relative_error(mean, x.double().mean((0, 2, 3))) <= 2e-6
    assert relative_error(variance, x.double().var((0, 2, 3), correction=0)) <= 2e-6
    for buffer, right in zip(buffers, wide.buffers()):
        assert relative_error(buffer, right.double()) <= tolerance
    assert norm.num_batches_tracked == 2
    # Autograd notices that they changed.
    assert all(buffer._version > before for buffer, before in zip(buffers, versions))


def test_the_schema_says_what_is_changed():
    sums, vectors = torch.rand(3, 2, 5, device=DEVICE), torch.rand(4, 5, device=DEVICE)
    batches = torch.tensor(1, device=DEVICE)
    torch.library.opcheck(
        statistics,
        (sums, 40, *vectors[:2], 1e-5, *vectors[2:].unbind(), batches, 0.1),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_variance_survives_a_large_mean():
    torch.manual_seed(0)
    y = (torch.randn(1000, 3) + 10_000).double()
    tiles = y.split(64)
    sums = torch.stack([torch.stack([t.mean(0), t.var(0, correction=0)]) for t in tiles])
    mean, variance = TileSums(sums.float().to(DEVICE), 1000).joined().sums[0].cpu()
    torch.testing.assert_close(mean.double(), y.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), y.var(0, correction=0), rtol=1e-4, atol=0)
