"""The tuner: time the tiles that could do for a launch, and keep the fastest that is right.

It looks at operators as they pass by, in a training step or one by one, so that what is tuned is
what is launched. It runs only when asked, never inside a launch, so no captured graph and no first
step contains it. Where several processes train together, the first one tunes and tells the others.
"""

import functools
import itertools
import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sparse_kernels.dispatch.backend import forced_backend
from sparse_kernels.layout import BlockLayout
from sparse_kernels.operators import reference
from sparse_kernels.operators.convolution import conv2d, conv2d_input_grad, conv2d_weight_grad
from sparse_kernels.registration import NAMESPACE
from sparse_kernels.timing import once
from sparse_kernels.triton.launch import architecture, precision
from sparse_kernels.triton.run_tiles import LENGTHS
from sparse_kernels.triton.tile_choice import (
    TAPS,
    Launch,
    Tuned,
    TunedRun,
    forced,
    tuned_tiles,
)
from sparse_kernels.triton.tiles import SHARED_LIMIT, Tile

Call = Callable[[], Any]
REPETITIONS = 7
# What is faster than the present tile by less is noise.
NOTICEABLE = 0.98
# Triton spends a level of its pipeline on the lists that a sum follows, as long as they are int32:
# three stages and four then give the same two buffers of operands, five give three.
STAGES = (3, 5)
# Fp32 sums a program may hold in registers: threads x 128; half where it transforms its input or
# sums its output up, which is what the table's tiles leave room for.
SUMS_PER_THREAD = 128
# Relative errors: of the data type, times what other orders of a sum do. TF32 has fp16's mantissa.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Tuner(TorchDispatchMode):
    """Within, every launch of the package's operators is tuned when its key comes by first.

    keys: of all launches so far. found: the fastest tiles, of the first process only.
    """

    def __init__(self, candidates: Sequence[Tuned] | None, measures: bool) -> None:
        """Try some tiles, or those that fit a launch; `measures` unless another process does."""
        super().__init__()
        self.keys: set[str] = set()
        self.found: dict[str, Tuned] = {}
        self._candidates, self._measures = candidates, measures

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and, if it launches anything new, tune that on the same arguments."""
        named = named or {}
        if operator.namespace != NAMESPACE:
            return operator(*arguments, **named)
        with forced() as launches:
            result = operator(*arguments, **named)
        new = {launch.key: launch for launch in launches if launch.key not in self.keys}
        self.keys |= set(new)
        if new and self._measures:
            self._tune(operator, *tree_map_only(Tensor, _with_numbers, (arguments, named)), new)
        return result

    def _tune(self, operator: Any, arguments: Any, named: Any, new: Mapping[str, Launch]) -> None:
        run = functools.partial(operator, *_joining(operator, arguments), **named)
        if hasattr(reference, operator.overloadpacket.__name__):
            right = _by_definition(operator, arguments, named)
        else:
            with forced(dict.fromkeys(new)):
                right = run()
        for launch in new.values():
            tiles = self._candidates or candidates_of(launch)
            self.found |= _fastest(run, right, launch, [t for t in tiles if launch.fits(t)])


@contextmanager
def tuning(device: torch.device, candidates: Sequence[Tuned] | None = None) -> Iterator[Tuner]:
    """Tune what is launched within; afterwards all processes use what the first one found.

    Args:
        device: of the launches.
        candidates: tiles to try instead of those that fit it.

    Raises:
        RuntimeError: while a CUDA graph is being captured.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("tiles cannot be tuned while a CUDA graph is captured: tune before")
    with Tuner(candidates, measures=_rank() == 0) as tuner:
        yield tuner
    tuner.found = _from_first(tuner.found)
    tuned_tiles(device).add(tuner.found)


def tune_conv2d(
    x: Tensor,
    values: Tensor,
    layout: BlockLayout,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    candidates: Sequence[Tuned] | None = None,
) -> dict[str, Tuned]:
    """Find the fastest tiles of the three plain passes of a layer and use them from now on.

    Args:
        x: [N, C, H, W], in the order and data type that training will have.
        values: [Z, BC, BO], of the same data type.
        layout: its number of slots counts, not where they lie.
        stride, padding, dilation: (height, width).
        candidates: tiles to try instead of those that fit the device.

    Returns:
        The tiles by launch key. `save` keeps them for later processes.

    Raises:
        RuntimeError: while a CUDA graph is being captured.
    """
    index, sizes, geometry = layout.tensors(), layout.sizes(), (stride, padding, dilation)
    with torch.no_grad(), tuning(x.device, candidates) as tuner:
        dy = conv2d(x, values, index, sizes, *geometry).normal_()
        conv2d_input_grad(dy, values, index, sizes, x.shape[2:], *geometry)
        conv2d_weight_grad(x, dy, index, sizes, *geometry)
    return tuner.found


def save(device: torch.device) -> None:
    """Write the tuned tiles of this process to the device's cache file; the first rank does."""
    if _rank() == 0:
        tuned_tiles(device).save()


def candidates_of(launch: Launch) -> Iterator[Tuned]:
    """Yield what a launch could run with instead of the table's tile."""
    return candidate_tiles(launch) if launch.run is None else candidate_runs(launch)


def candidate_runs(launch: Launch) -> Iterator[TunedRun]:
    """Yield a tap at a time, and runs that differ from the table's in one number.

    What needs more registers or shared memory than there are is slow, or cannot run.
    """
    yield TAPS
    assert launch.run is not None
    run = TunedRun.of(launch.run)
    yield from (run._replace(length=n) for n in LENGTHS if n != run.length)
    yield from (run._replace(bm=n) for n in (run.bm // 2, 2 * run.bm) if n >= 16)
    yield from (run._replace(warps=n) for n in (run.warps // 2, 2 * run.warps) if 2 <= n <= 8)
    if run.bk > 16:
        yield run._replace(bk=run.bk // 2)
    if run.taps:  # of a weight gradient
        yield run._replace(strips=1 if run.strips > 1 else 2)
    if run.tma:
        yield run._replace(tma=False)


def candidate_tiles(launch: Launch) -> Iterator[Tile]:
    """Yield tiles for a launch that fit the registers and the shared memory of its device."""
    size, limit = launch.image.element_size(), SHARED_LIMIT[architecture(launch.image)]
    bo, bc = launch.block
    most = SUMS_PER_THREAD * 32 // (1 if launch.is_plain else 2)
    for bm, warps, stages in itertools.product((64, 128, 256), (4, 8), STAGES):
        if launch.key.startswith("weight gradient"):
            steps, sums, widths = [0], bo * bc, bo + bc
        else:
            summed, written = (bo, bc) if launch.key.startswith("input gradient") else (bc, bo)
            steps = [k for k in (64 // size, 128 // size) if summed % k == 0] or [16]
            sums, widths = bm * written, bm + written
        for bk in steps:
            tile = Tile(bm, bk, warps, stages, tma=True)
            loaded = (bk or bm) * widths * size
            if sums <= most * warps and (stages - 1) * loaded <= limit:
                yield tile if launch.fits(tile) else tile._replace(tma=False)


def _joining(operator: Any, arguments: Sequence[Any]) -> list[Any]:
    """Return arguments with which sums come joined, if an operator else returns them by tile."""
    names = (argument.name for argument in operator._schema.arguments)
    return [True if name == "join" else value for name, value in zip(names, arguments)]


def _with_numbers(x: Tensor) -> Tensor:
    """Return x, or noise where it is images of zeros, with which any tile would be right.

    So are the gradients in a branch whose last norm begins with weights of 0.
    """
    if x.ndim < 2 or not x.is_floating_point() or bool(x.any()):
        return x
    return torch.empty_like(x).normal_(generator=torch.Generator(x.device).manual_seed(0))


def _by_definition(operator: Any, arguments: Any, named: Any) -> Any:
    """Return the result of a plain operator by its definition, in float32."""
    widened = tree_map_only(
        Tensor, lambda x: x.float() if x.is_floating_point() else x, (arguments, named)
    )
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with forced_backend("masked"):
            return operator(*widened[0], **widened[1])
    finally:
        for switch, value in zip(switches, before):
            switch.fp32_precision = value


def _fastest(run: Call, right: Any, launch: Launch, tiles: Sequence[Tuned]) -> dict[str, Tuned]:
    """Return the fastest right tile by the launch's key; nothing if none is as fast as now."""
    best, chosen = NOTICEABLE * _seconds(run), None
    image = launch.image
    is_tf32 = precision(image) == "tf32"
    tolerance = TOLERANCE[torch.float16 if is_tf32 else image.dtype]
    for tile in tiles:
        with forced({launch.key: tile}):
            if _is_right(run, right, tile, tolerance) and (seconds := _seconds(run)) < best:
                best, chosen = seconds, tile
    return {} if chosen is None else {launch.key: chosen}


def _is_right(run: Call, right: Any, tile: Tuned, tolerance: float) -> bool:
    """Return whether a tile compiles, runs and gives what is right."""
    log = logging.getLogger(__name__)
    try:
        found = run()
    except Exception as error:  # a compiler and a driver raise what they like
        log.info("%s cannot run: %s", tile, error)
        return False
    for ours, expected in zip(tree_leaves(found), tree_leaves(right), strict=True):
        error = _relative_error(ours.float(), expected.float())
        if not error <= tolerance:
            log.warning("%s is wrong by %.2g and not used", tile, error)
            return False
    return True


def _relative_error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def _seconds(run: Call) -> float:
    """Return the median time of a call; run() before has compiled it."""
    run()
    on_gpu = torch.cuda.is_available()
    return statistics.median(once(run, on_gpu) for _ in range(REPETITIONS))


def _rank() -> int:
    return torch.distributed.get_rank() if _several() else 0


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _from_first(found: dict[str, Tuned]) -> dict[str, Tuned]:
    """Return what the first of several processes found."""
    if not _several():
        return found
    box = [found]
    torch.distributed.broadcast_object_list(box)
    return box[0]
