"""What the launchers share: facts about a tensor's device, what TMA can move, and descriptors.

Activations come as [N, C, H, W] in HWNC or channels_last order; a linear layer is an image of one
pixel. Triton is imported when first needed, so that the package works where there is none.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_kernels.registration import positions
from sparse_kernels.triton.tiles import Tile, generation

# One tile more than this must still fit into 32 bits.
LARGEST_COUNT = 2**31 - 2**10
INTERPRETED_PROCESSORS = 4


def launch(like: Tensor, kernel: Any, grid: tuple[int, ...], /, **arguments: Any) -> None:
    """Launch a kernel on the device of `like`; all launches go through here.

    Triton itself takes whichever device is current.

    Args:
        like: a tensor among those that the kernel reads or writes.
        kernel, grid: what runs, and how many programs of it.
        arguments: of the kernel by name, None for what a variant of it does not use, which the
            compiler then knows; and launch options.
    """
    device = like.get_device()
    if device < 0 or device == torch.cuda.current_device():
        kernel[grid](**arguments)
        return
    with torch.cuda.device(device):
        kernel[grid](**arguments)


def check_size(*images: Tensor) -> None:
    """Positions are counted in 32 bits; addresses are not, so elements may be more."""
    for x in images:
        found = positions(x.shape, 1)
        if found > LARGEST_COUNT:
            raise ValueError(
                f"a kernel takes at most {LARGEST_COUNT} pixels in a batch, found {found}; "
                "use smaller batches"
            )


# Known GPUs. Dynamo would warn of a function that is cached, whoever compiles a model.
_FACTS: dict[torch.device, tuple[int, int]] = {}


def gpu_facts(device: torch.device) -> tuple[int, int]:
    """Return a GPU's generation and its number of processors."""
    if device not in _FACTS:
        facts = torch.cuda.get_device_properties(device)
        number = generation((facts.major, facts.minor))
        _FACTS[device] = number, facts.multi_processor_count
    return _FACTS[device]


# As torch.compiler.assume_constant_result says it, which would import the compiler.
gpu_facts._dynamo_marked_constant = True


def architecture(x: Tensor) -> int:
    """Return the generation of the GPU that x is on; the interpreter counts as Hopper."""
    return gpu_facts(x.device)[0] if x.is_cuda else 90


def processors(x: Tensor) -> int:
    """Return how many processors the device of x has."""
    return gpu_facts(x.device)[1] if x.is_cuda else INTERPRETED_PROCESSORS


def kind(x: Tensor) -> tuple[int, int, bool]:
    """Return what tiles depend on: generation, bytes an element, fp32 without TF32."""
    return architecture(x), x.element_size(), is_exact(x)


def is_exact(x: Tensor) -> bool:
    """Return whether x is fp32 and PyTorch itself would not use TF32 for it."""
    return x.dtype == torch.float32 and not _tf32_allowed(x)


def precision(x: Tensor) -> str:
    """Return the input precision of tl.dot."""
    return "tf32" if x.dtype == torch.float32 and not is_exact(x) else "ieee"


def _tf32_allowed(x: Tensor) -> bool:
    switch = (
        torch.backends.cudnn.conv if x.shape[2] * x.shape[3] > 1 else torch.backends.cuda.matmul
    )
    return switch.fp32_precision == "tf32"


def flat_geometry(geometry: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return stride, padding and dilation as the kernels' GEOMETRY."""
    return tuple(size for pair in geometry for size in pair)


def options(tile: Tile) -> dict[str, int]:
    """Return the launch options of a tile."""
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def pixel_strides(name: str, x: Tensor) -> dict[str, int]:
    """Return NAME_n, NAME_h and NAME_w, the strides of image, height and width of x, in elements.

    Those of a dimension of size 1 may be any.
    """
    n, channels, height, width = x.shape
    sizes = {"n": (n, x.stride(0)), "h": (height, x.stride(2)), "w": (width, x.stride(3))}
    return {f"{name}_{d}": stride if size > 1 else channels for d, (size, stride) in sizes.items()}


def tma_fits(tile: Tile, *images: Tensor) -> bool:
    """Return whether TMA can move tiles of these images: order, batch, type, alignment."""
    return all(
        is_hwnc(x)
        and x.shape[0] % tile.bm == 0
        and not is_exact(x)
        and architecture(x) >= 90
        and is_aligned(x)
        and x.shape[1] * x.element_size() % 16 == 0
        for x in images
    )


def is_hwnc(x: Tensor) -> bool:
    """Return whether x [N, C, H, W] is in HWNC order."""
    return x.permute(2, 3, 0, 1).is_contiguous()


def is_aligned(x: Tensor) -> bool:
    """Return whether TMA can read from the first element on."""
    return x.data_ptr() % 16 == 0


def descriptor(x: Tensor, box: list[int]) -> Any:
    """Return a TMA descriptor of [..., C], seen as [M, C], that moves boxes of this size.

    It is made on the host at every launch, in 2 us: Triton encodes it anew anyway, kept or not.
    x: contiguous, or images [N, C, H, W] in HWNC order, which are [H * W * N, C].
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    channels = x.shape[1] if x.ndim == 4 else x.shape[-1]
    return TensorDescriptor(x, [x.numel() // channels, channels], [channels, 1], box)
