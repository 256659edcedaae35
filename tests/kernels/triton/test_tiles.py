"""Cases that are meant for TMA reach it on a GPU with the table's tiles, as far as it shows here.

In the interpreter tiles are small, so that the same cases reach it with smaller batches.
"""

import math
from dataclasses import replace

import pytest
import torch
from kernel_cases import CASES as PLAIN
from kernel_cases import FUSED_CASES, TILE, Case

from sparse_kernels.memory_order import in_order
from sparse_kernels.triton.launch import tma_fits
from sparse_kernels.triton.tiles import gather_tile, power_of_two, weight_grad_tile

# Written out, so that one that leaves TMA is seen.
EXPECTED = {
    "plain", "tma, several tiles", "tma", "strided in rows", "ragged rows", "wide block",
    "one block", "full", "unused slots",
}  # fmt: skip
CASES = {**FUSED_CASES, **PLAIN}


def on_gpu(case: Case) -> Case:
    """Return a case as it is where tiles have 128 positions."""
    tiles, rest = divmod(case.batch, TILE)
    return case if rest else replace(case, batch=128 * tiles)


def runs_by_tma(case: Case, dtype: torch.dtype, fused: bool) -> bool:
    """Return whether all three passes of a case are those of TMA on sm_90."""
    out_channels, in_channels = case.channels
    x = in_order(torch.empty(case.batch, in_channels, *case.image, dtype=dtype), case.order)
    y = in_order(torch.empty(case.batch, out_channels, *case.output, dtype=dtype), case.order)
    bo, bc = case.block
    kind = (90, x.element_size(), False)
    tiles = (
        gather_tile(*kind, bc, bo, fused, True),
        gather_tile(*kind, bo, bc, fused, True),
        weight_grad_tile(*kind, bc, bo, fused, True),
    )
    whole = all(power_of_two(side) == side for side in case.block)
    return whole and all(tile.tma and tma_fits(tile, x, y) for tile in tiles)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "tf32"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_cases_for_tma_reach_it(fused, dtype, tf32):
    found = {name for name, case in CASES.items() if runs_by_tma(on_gpu(case), dtype, fused)}
    assert found == EXPECTED


def test_batches_of_the_interpreter_would_not():
    small = Case(batch=math.gcd(16, TILE))
    assert not runs_by_tma(small, torch.float16, False)


def test_exact_products_of_fp32_are_no_case_for_tma(tf32):
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert not runs_by_tma(on_gpu(CASES["plain"]), torch.float32, False)
