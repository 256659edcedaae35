"""Which kernels there are to compile, and what they are compiled with.

Every configuration of the tile tables that a launcher can choose; of strips those of the usual
width, and the widest where they need the most registers.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparse_kernels.operators import batch_norm
from sparse_kernels.triton import sums
from sparse_kernels.triton.run_tiles import RunTile, run_gather_tile, run_weight_grad_tile
from sparse_kernels.triton.run_weight_grad import BLOCKS
from sparse_kernels.triton.tiles import (
    SHARED_LIMIT,
    Tile,
    gather_tile,
    power_of_two,
    weight_grad_tile,
)

SIZES = (16, 32, 64, 128)
PASSES = ("forward", "input gradient", "weight gradient")
TYPES = {"bf16": ("bf16", 2, "ieee"), "tf32": ("fp32", 4, "tf32"), "fp32": ("fp32", 4, "ieee")}
GEOMETRY = (1,) * 6
# With all fusions at once, which needs the most registers; alone they need no more.
FUSED_BLOCKS = ((32, 32), (64, 64), (128, 128))
# Widths of kernels whose strips are compiled: the usual one, and the widest.
STRIPS = (3, 7)
IMAGES = (
    *("src", "values", "bias", "dst", "x", "dy", "residual"),
    *("grad", "out", "other", "dx", "dresidual"),
)
VECTORS = (
    *("partial", "scale", "shift", "sums", "mean", "variance"),
    *("weight", "dweight", "dbias", "vectors", "running_mean", "running_variance"),
    *("gradient", "tiles", "totals"),
)
LISTS = ("start", "slot", "reduce", "tap_h", "tap_w", "out_block", "in_block")
# Channel counts and strides that are multiples of 16, as launches see them.
STRIDES = r"N|C|C_\w+|ELEMENTS|VECTOR|\w+_[nhw]"
# With all that they can do at once, but for what is None.
IMAGE = {"BM": batch_norm.BM, "BC": batch_norm.BC}
NORM_PASSES = {
    "tile_sums": IMAGE,
    "tile_gradients": {**IMAGE, "RELU": True},
    "affine": {"BC": batch_norm.BC},
    "normalised": {**IMAGE, "RELU": True},
    "normalised_grad": {**IMAGE, "RELU": True, "BATCH": True, "SCALED": False},
    "joined": {"SUMS": sums.JOINED_TILES, "BC": sums.JOINED_CHANNELS},
    "added": {"LONG": sums.LONG, "SHORT": sums.SHORT},
}


@dataclass(frozen=True)
class Configuration:
    """One kernel as it is compiled: for which GPU, pass, variant, type, block (BO, BC), fusions; of
    how many taps its strips are, 0 for a tap at a time."""

    arch: int
    kernel: str
    tma: bool
    dtype: str
    block: tuple[int, int]
    fused: bool = False
    strips: int = 0


def configurations() -> Iterator[Configuration]:
    """Yield every configuration that a launcher can choose."""
    blocks = list(itertools.product(SIZES, SIZES))
    for arch, kernel, tma, dtype, block in itertools.product(
        SHARED_LIMIT, PASSES, (False, True), TYPES, blocks
    ):
        if not tma or (arch >= 90 and dtype != "fp32"):
            yield Configuration(arch, kernel, tma, dtype, block)
            if block in FUSED_BLOCKS:
                yield Configuration(arch, kernel, tma, dtype, block, fused=True)
    for arch, kernel, tma, block in itertools.product(SHARED_LIMIT, PASSES, (False, True), blocks):
        for fused, taps in itertools.product((False, True), STRIPS):
            c = Configuration(arch, kernel, tma, "bf16", block, fused, taps)
            wanted = block in FUSED_BLOCKS or (taps == STRIPS[0] and not fused)
            if wanted and (not tma or arch >= 90) and run_of(c) is not None:
                yield c
    for arch, kernel, dtype in itertools.product(SHARED_LIMIT, NORM_PASSES, ("bf16", "fp32")):
        yield Configuration(arch, kernel, False, dtype, (batch_norm.BC, batch_norm.BC))


def arguments(
    c: Configuration, tile: Tile | None = None
) -> tuple[Any, dict[str, Any], dict[str, list[int]], Tile]:
    """Return a configuration's kernel, its constants, the boxes of its descriptors and its tile."""
    from sparse_kernels.triton import (
        batch_norm_kernels,
        gather_kernels,
        sums_kernels,
        weight_grad_kernels,
    )

    if c.kernel in NORM_PASSES:
        constants = NORM_PASSES[c.kernel]
        module = sums_kernels if hasattr(sums_kernels, c.kernel) else batch_norm_kernels
        tile = (
            Tile(batch_norm.BM, 0, batch_norm.WARPS, 1) if "BM" in constants else Tile(0, 0, 4, 1)
        )
        return getattr(module, c.kernel), constants, {}, tile
    if c.strips:
        return _run_arguments(c)
    (bo, bc), (_, itemsize, precision) = c.block, TYPES[c.dtype]
    exact = c.dtype == "fp32"
    input_kind = "affine_relu" if c.fused else "plain"
    common = {"GEOMETRY": GEOMETRY, "INPUT": input_kind, "PRECISION": precision}
    if not c.fused:
        common |= {"scale": None, "shift": None}
    if c.kernel == "weight gradient":
        tile = tile or weight_grad_tile(c.arch, itemsize, exact, bc, bo, c.fused, c.tma)
        constants = {**common, "BM": tile.bm, "BC": bc, "BO": bo}
        if c.tma:
            boxes = {"x": [tile.bm, bc], "dy": [tile.bm, bo]}
            return weight_grad_kernels.weight_grad_tma, constants, boxes, tile
        constants |= {"HWNC": False, "RAGGED": False, "TILE_C": bc, "TILE_O": bo}
        return weight_grad_kernels.weight_grad_pointers, constants, {}, tile
    transposed = c.kernel == "input gradient"
    reduce, written = (bo, bc) if transposed else (bc, bo)
    tile = tile or gather_tile(c.arch, itemsize, exact, reduce, written, c.fused, c.tma)
    constants = {
        **common,
        "TRANSPOSED": transposed,
        "BM": tile.bm,
        "BK": tile.bk,
        "BLOCK_RED": reduce,
        "BLOCK_DST": written,
        **_unused(c),
    }
    if c.tma:
        weights = [written, tile.bk] if transposed else [tile.bk, written]
        boxes = {"src": [tile.bm, tile.bk], "values": weights, "dst": [tile.bm, written]}
        boxes["x"] = boxes["residual"] = boxes["dst"]
        return gather_kernels.gather_tma, constants, boxes, tile
    constants |= {"HWNC": False, "RAGGED": False, "TILE_DST": power_of_two(written)}
    return gather_kernels.gather_pointers, constants, {}, tile


def _unused(c: Configuration) -> dict[str, None]:
    """Return the tensors that a gather pass is not given."""
    transposed = c.kernel == "input gradient"
    names = ["bias"] if transposed else []
    names += [] if transposed and c.fused else ["x"]
    return dict.fromkeys(names if c.fused else [*names, "residual", "partial"])


def run_of(c: Configuration) -> RunTile | None:
    """Return the runs of a configuration of strips; None if a tap at a time is better."""
    (bo, bc), (_, itemsize, _) = c.block, TYPES[c.dtype]
    if not c.strips:
        return None
    if c.kernel == "weight gradient":
        return run_weight_grad_tile(c.arch, itemsize, False, bc, bo, c.strips, c.fused, c.tma)
    sides = (bo, bc) if c.kernel == "input gradient" else (bc, bo)
    return run_gather_tile(c.arch, itemsize, False, *sides, c.strips, c.fused, c.tma)


def _run_arguments(c: Configuration) -> tuple[Any, dict[str, Any], dict[str, list[int]], Tile]:
    from sparse_kernels.triton import run_gather_kernels, run_weight_grad_kernels

    run = run_of(c)
    assert run is not None
    modules = {"gather": run_gather_kernels, "weight_grad": run_weight_grad_kernels}
    kernel, constants, boxes, tile = arguments(replace(c, strips=0), run.tile)
    name = "weight_grad" if c.kernel == "weight gradient" else "gather"
    kernel = getattr(modules[name], f"run_{name}_{'tma' if c.tma else 'pointers'}")
    del constants["GEOMETRY"]
    constants |= {"P": run.length, "S": c.strips, "PADDING": (1, c.strips // 2)}
    if run.taps:
        constants |= {"TAPS": run.taps, "G": run.strips, "BLOCKS": BLOCKS}
    return kernel, constants, boxes, tile


def signature(
    c: Configuration,
    names: Sequence[str],
    constants: dict[str, Any],
    descriptors: dict[str, list[int]],
) -> tuple[dict[str, str], dict[tuple[int], list[Any]]]:
    """Return the types of a kernel's arguments, and which of them are multiples of 16."""
    element, lists = TYPES[c.dtype][0], "*i16" if c.strips else "*i32"
    kinds = {n: _kind(n, constants, descriptors, element, lists) for n in names}
    return kinds, {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if kinds[n].startswith("*") or (kinds[n] == "i32" and re.fullmatch(STRIDES, n))
    }


def _kind(
    name: str,
    constants: dict[str, Any],
    descriptors: dict[str, list[int]],
    element: str,
    lists: str,
) -> str:
    if name in constants:
        return "constexpr"
    if name in descriptors:
        return f"tensordesc<{element}[{','.join(map(str, descriptors[name]))}]>"
    if name in IMAGES:
        return f"*{element}"
    if name in VECTORS:
        return "*fp32"
    if name in ("eps", "momentum"):
        return "fp32"
    if name == "batches":
        return "*i64"
    return lists if name in LISTS else "i32"
