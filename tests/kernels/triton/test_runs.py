"""Runs of pixels for strips, against float64: interpreted on a CPU, compiled on a GPU."""

import pytest
import torch
from kernel_cases import DTYPES, TILE, Case
from kernel_checks import FUSIONS, check_convolution, check_fused

pytestmark = pytest.mark.usefixtures("poisoned_kernels")

CASES = {
    "plain": Case(strips=True, image=(4, 4)),
    "run ends inside a row": Case(strips=True, image=(3, 7), batch=2 * TILE),
    "narrower than a run": Case(strips=True, image=(3, 1)),
    "odd batch": Case(strips=True, batch=5, image=(3, 6)),
    "channels_last": Case(strips=True, batch=3, image=(4, 5), order="channels_last"),
    "contiguous": Case(strips=True, batch=2, image=(2, 9), order="contiguous"),
    "kernel wider than the image": Case(strips=True, kernel=(1, 7), padding=(0, 3), image=(2, 3)),
    "seven wide": Case(
        strips=True, kernel=(2, 7), padding=(1, 2), image=(3, 9), batch=3, density=0.2
    ),
    "two wide, no padding": Case(strips=True, kernel=(3, 2), padding=(0, 0), image=(4, 6)),
    "much padding": Case(strips=True, kernel=(1, 3), padding=(2, 4), image=(1, 3)),
    "ragged": Case(strips=True, channels=(37, 21), batch=4),
    "ragged rows": Case(strips=True, channels=(40, 24), block=(32, 16)),
    "no power of two": Case(strips=True, channels=(48, 96), block=(48, 48), batch=3),
    "one strip": Case(strips=True, density=0.0),
    "unused slots": Case(strips=True, unused=2, bias=False),
    "full": Case(strips=True, density=1.0, image=(2, 4), kernel=(1, 3), padding=(0, 1)),
    "strided": Case(strips=True, stride=(1, 2), image=(3, 5)),
    "dilated": Case(strips=True, dilation=(1, 2), image=(3, 6), batch=3),
    "one wide": Case(strips=True, kernel=(3, 1), padding=(1, 0)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_convolution(name, dtype):
    torch.manual_seed(0)
    check_convolution(CASES[name], dtype)


@pytest.mark.parametrize("options", ["all", "fixed norm, other gradient"])
@pytest.mark.parametrize("name", ["plain", "run ends inside a row", "channels_last", "ragged"])
def test_fused_convolution(name, options):
    torch.manual_seed(0)
    check_fused(CASES[name], FUSIONS[options], torch.float32)
