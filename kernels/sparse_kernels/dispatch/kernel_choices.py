"""What was measured on this machine and decides what `auto` runs, to be kept with a run.

A run that is continued, or shared by several processes, then takes the same kernels everywhere,
whatever has been measured meanwhile.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from sparse_kernels.dispatch.cost_model import kept_limits
from sparse_kernels.measurements import Measurements
from sparse_kernels.triton.tile_choice import tuned_tiles

KernelChoices = Mapping[str, Mapping[str, Sequence[float]]]


def kernel_choices(device: torch.device) -> KernelChoices:
    """Return the tuned tiles of a GPU, or the break-even densities of a CPU, as JSON holds them.

    They stand under the name of the file that this machine keeps them in, which names hardware and
    versions.
    """
    measured = _measured(device)
    return {measured.path.name: {key: list(entry) for key, entry in measured.entries.items()}}


@contextmanager
def with_kernel_choices(device: torch.device, kept: KernelChoices) -> Iterator[None]:
    """Run what is inside with what kernel_choices returned, and nothing that was measured since.

    What other hardware or other versions measured says nothing here and is left out.

    Raises:
        TypeError, ValueError or AttributeError: it is something else.
    """
    measured = _measured(device)
    before, name = measured.entries, measured.path.name
    measured.entries = measured.parsed({name: before, **kept}[name])
    try:
        yield
    finally:
        measured.entries = before


def _measured(device: torch.device) -> Measurements:
    return tuned_tiles(device) if device.type == "cuda" else kept_limits()
