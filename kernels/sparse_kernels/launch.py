"""Launchers: check what a kernel needs, pick its variant and tile, launch it.

Activations come as [N, C, H, W] in rows or channels_last order; a linear layer is an image of one
pixel. Triton is imported when first needed, so that the package works where there is none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.layout import PassIndex, SlotIndex, block_grid
from sparse_kernels.tiles import Tile, gather_tile, generation, power_of_two, weight_grad_tile

# One tile more than this must still fit into 32 bits.
LARGEST_COUNT = 2**31 - 2**10
PROGRAMS_PER_PROCESSOR = 2
INTERPRETED_PROCESSORS = 4


def _on_its_device(launcher: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make the device of a launcher's first tensor current, since Triton launches there."""

    @functools.wraps(launcher)
    def launch(first: Tensor, *arguments: Any) -> Tensor:
        if not first.is_cuda:
            return launcher(first, *arguments)
        with torch.cuda.device(first.device):
            return launcher(first, *arguments)

    return launch


@_on_its_device
def gather(
    src: Tensor,
    values: Tensor,
    bias: Tensor | None,
    dst: Tensor,
    index: PassIndex,
    sizes: Sequence[int],
    geometry: Sequence[Sequence[int]],
    transposed: bool,
) -> Tensor:
    """Fill dst with the forward pass of src, or with its input gradient when transposed.

    Args:
        src: [N, C, H, W] ([N, O, P, Q] when transposed).
        values: [Z, BC, BO], contiguous.
        bias: of the written channels, or None.
        dst: what is written, in the order of src.
        index: the pass's lists.
        sizes: BlockLayout.sizes().
        geometry: stride, padding, dilation.
        transposed: input gradient.
    """
    _check_size(src, dst)
    bo, bc = sizes[4:]
    block_red, block_dst = (bo, bc) if transposed else (bc, bo)
    constants = {
        **_geometry(geometry),
        "TRANSPOSED": transposed,
        "HAS_BIAS": bias is not None,
        "PRECISION": _precision(src),
        "BLOCK_RED": block_red,
        "BLOCK_DST": block_dst,
    }
    values = values.contiguous()
    bias = dst if bias is None else bias.contiguous()
    tile = gather_tile(*_kind(src), block_red, block_dst, True)
    whole = power_of_two(block_dst) == block_dst
    if whole and _aligned(values) and _rows_fit(tile, src, dst):
        _gather_rows(src, values.view(-1, bo), bias, dst, index, tile, constants)
    else:
        tile = gather_tile(*_kind(src), block_red, block_dst, False)
        _gather_pointers(src, values, bias, dst, index, tile, constants)
    return dst


def _gather_rows(
    src: Tensor,
    values: Tensor,
    bias: Tensor,
    dst: Tensor,
    index: PassIndex,
    tile: Tile,
    constants: dict[str, Any],
) -> None:
    from sparse_kernels.gather_kernels import gather_rows

    block_dst, (n, channels, hd, wd) = constants["BLOCK_DST"], dst.shape
    blocks = -(-channels // block_dst)
    box = [block_dst, tile.bk] if constants["TRANSPOSED"] else [tile.bk, block_dst]
    gather_rows[(blocks * hd * wd * (n // tile.bm),)](
        _descriptor(_flat_rows(src), [tile.bm, tile.bk]),
        _descriptor(values, box),
        bias,
        _descriptor(_flat_rows(dst), [tile.bm, block_dst]),
        *index,
        n,
        *src.shape[2:],
        wd,
        channels,
        blocks,
        **constants,
        BM=tile.bm,
        BK=tile.bk,
        **_options(tile),
    )


def _gather_pointers(
    src: Tensor,
    values: Tensor,
    bias: Tensor,
    dst: Tensor,
    index: PassIndex,
    tile: Tile,
    constants: dict[str, Any],
) -> None:
    from sparse_kernels.gather_kernels import gather_pointers

    block_dst, (n, channels, hd, wd) = constants["BLOCK_DST"], dst.shape
    blocks, padded = -(-channels // block_dst), power_of_two(block_dst)
    ragged = src.shape[1] % constants["BLOCK_RED"] or channels % block_dst or padded != block_dst
    gather_pointers[(blocks * -(-n * hd * wd // tile.bm),)](
        src,
        values,
        bias,
        dst,
        *index,
        n * hd * wd,
        n,
        *src.shape[2:],
        hd,
        wd,
        src.shape[1],
        channels,
        blocks,
        *_strides(src),
        *_strides(dst),
        **constants,
        IMAGES_LAST=_images_last(dst),
        RAGGED=bool(ragged),
        BM=tile.bm,
        BK=tile.bk,
        TILE_DST=padded,
        **_options(tile),
    )


@_on_its_device
def weight_grad(
    x: Tensor,
    dy: Tensor,
    index: SlotIndex,
    sizes: Sequence[int],
    geometry: Sequence[Sequence[int]],
) -> Tensor:
    """Return dvalues [Z, BC, BO] of x [N, C, H, W] and dy [N, O, P, Q], both in one order."""
    _check_size(x, dy)
    bo, bc = sizes[4:]
    slots, (n, _, p, q) = len(index.out_block), dy.shape
    out_blocks = block_grid(sizes[:4], (bo, bc))[0]
    tile = weight_grad_tile(*_kind(x), bc, bo, True)
    padded = {"TILE_C": power_of_two(bc), "TILE_O": power_of_two(bo)}
    rows = (*padded.values(),) == (bc, bo) and _rows_fit(tile, x, dy)
    if not rows:
        tile = weight_grad_tile(*_kind(x), bc, bo, False)
    tiles = p * q * (n // tile.bm) if rows else -(-n * p * q // tile.bm)
    splits = max(1, min(tiles, PROGRAMS_PER_PROCESSOR * _processors(x) // slots))
    partial = x.new_empty((splits, slots, bc, bo), dtype=torch.float32)
    constants = {**_geometry(geometry), "PRECISION": _precision(x), "BM": tile.bm}
    constants |= {"BC": bc, "BO": bo, **_options(tile)}
    if rows:
        from sparse_kernels.weight_grad_kernels import weight_grad_rows

        weight_grad_rows[(slots * splits,)](
            _descriptor(_flat_rows(x), [tile.bm, bc]),
            _descriptor(_flat_rows(dy), [tile.bm, bo]),
            partial,
            *index,
            n,
            *x.shape[2:],
            p,
            q,
            out_blocks,
            slots,
            splits,
            **constants,
        )
    else:
        from sparse_kernels.weight_grad_kernels import weight_grad_pointers

        weight_grad_pointers[(slots * splits,)](
            x,
            dy,
            partial,
            *index,
            n * p * q,
            n,
            *x.shape[2:],
            p,
            q,
            x.shape[1],
            dy.shape[1],
            out_blocks,
            slots,
            splits,
            *_strides(x),
            *_strides(dy),
            IMAGES_LAST=_images_last(dy),
            RAGGED=bool(x.shape[1] % bc or dy.shape[1] % bo),
            **padded,
            **constants,
        )
    return partial.sum(0).to(x.dtype) if splits > 1 else partial[0].to(x.dtype)


def _check_size(*images: Tensor) -> None:
    """Positions are counted in 32 bits; addresses are not, so elements may be more."""
    for x in images:
        positions = x.shape[0] * x.shape[2] * x.shape[3]
        if positions > LARGEST_COUNT:
            raise ValueError(
                f"a kernel takes at most {LARGEST_COUNT} pixels in a batch, found {positions}; "
                "use smaller batches"
            )


@functools.cache
def _gpu(device: torch.device) -> tuple[int, int]:
    """Return a GPU's generation and its number of processors."""
    facts = torch.cuda.get_device_properties(device)
    return generation((facts.major, facts.minor)), facts.multi_processor_count


def _arch(x: Tensor) -> int:
    return _gpu(x.device)[0] if x.is_cuda else 90


def _kind(x: Tensor) -> tuple[int, int, bool]:
    """Return what tiles depend on: generation, bytes an element, fp32 without TF32."""
    return _arch(x), x.element_size(), _is_exact(x)


def _is_exact(x: Tensor) -> bool:
    return x.dtype == torch.float32 and not _tf32_allowed(x)


def _processors(x: Tensor) -> int:
    return _gpu(x.device)[1] if x.is_cuda else INTERPRETED_PROCESSORS


def _geometry(geometry: Sequence[Sequence[int]]) -> dict[str, int]:
    names = ("STRIDE", "PAD", "DIL")
    pairs = zip(names, geometry, strict=True)
    return {f"{name}_{d}": size for name, pair in pairs for d, size in zip("HW", pair)}


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def _precision(x: Tensor) -> str:
    """Return TF32 only where PyTorch itself would use it."""
    return "tf32" if x.dtype == torch.float32 and not _is_exact(x) else "ieee"


def _tf32_allowed(x: Tensor) -> bool:
    switch = (
        torch.backends.cudnn.conv if x.shape[2] * x.shape[3] > 1 else torch.backends.cuda.matmul
    )
    return switch.fp32_precision == "tf32"


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(2), x.stride(3)


def _rows_fit(tile: Tile, *images: Tensor) -> bool:
    """Return whether TMA can move tiles of these images: order, batch, type, alignment."""
    return all(
        _images_last(x)
        and x.shape[0] % tile.bm == 0
        and not _is_exact(x)
        and _arch(x) >= 90
        and _aligned(x)
        and x.shape[1] * x.element_size() % 16 == 0
        for x in images
    )


def _images_last(x: Tensor) -> bool:
    return x.permute(2, 3, 0, 1).is_contiguous()


def _aligned(x: Tensor) -> bool:
    return x.data_ptr() % 16 == 0


def _flat_rows(x: Tensor) -> Tensor:
    """View [N, C, H, W] in rows order as [H * W * N, C]."""
    return x.permute(2, 3, 0, 1).reshape(-1, x.shape[1])


def _descriptor(x: Tensor, box: list[int]) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x, box)
