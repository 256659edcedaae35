"""What was measured on this machine and decides what `auto` runs, to be kept with a run.

A run that is continued, or shared by several processes, then takes the same kernels everywhere,
whatever has been measured meanwhile.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch

from sparse_kernels.cpu.library import library, why_not
from sparse_kernels.dispatch.backend import VARIABLE, BackendError, without_native
from sparse_kernels.dispatch.cost_model import kept_limits
from sparse_kernels.measurements import Measurements
from sparse_kernels.triton.tile_choice import tuned_tiles

NATIVE = "native"
KernelChoices = Mapping[str, Mapping[str, Sequence[float]]]


def kernel_choices(device: torch.device) -> KernelChoices:
    """Return the tuned tiles of a GPU, or the break-even densities of a CPU, as JSON holds them.

    They stand under the name of the file that this machine keeps them in, which names hardware and
    versions. On a CPU NATIVE says besides whether the native kernels could be built,
    unless all runs masked.
    """
    measured = _measured(device)
    choices = {measured.path.name: {key: list(entry) for key, entry in measured.entries.items()}}
    if device.type == "cpu" and os.environ.get(VARIABLE) != "masked":  # which needs no compiler
        choices[NATIVE] = {"is_built": [float(library() is not None)]}
    return choices


@contextmanager
def with_kernel_choices(device: torch.device, kept: KernelChoices) -> Iterator[None]:
    """Run what is inside with what kernel_choices returned, and nothing that was measured since.

    What other hardware or other versions measured says nothing here and is left out.

    Raises:
        BackendError: native kernels were taken, and cannot be built here.
        TypeError, ValueError or AttributeError: it is something else.
    """
    kept = dict(kept)
    (was_built,) = kept.pop(NATIVE, {}).get("is_built", [None])
    if was_built and library() is None and os.environ.get(VARIABLE) != "masked":
        raise BackendError(
            f"it began with native kernels, which cannot run here: {why_not()}; mend that, or take "
            "--backend masked"
        )
    measured = _measured(device)
    before, name = measured.entries, measured.path.name
    measured.entries = measured.parsed({name: before, **kept}[name])
    try:
        with without_native() if was_built == 0 else nullcontext():
            yield
    finally:
        measured.entries = before


def _measured(device: torch.device) -> Measurements:
    return tuned_tiles(device) if device.type == "cuda" else kept_limits()
