"""How much of a step convolution and linear layers take, by PyTorch's profiler on a CPU.

What is left are passes over activations (norms, ReLU, sums), the loss, the optimizer and Python:
no kind of sparse product saves any of it.
"""

from collections.abc import Callable
from typing import Any

from torch.autograd.profiler import profile, record_function

PHASE = "products"
# The operators that a convolution or linear layer and its gradients are. Ours have the masked
# path's scattering inside, casts of autocast are outside.
LIBRARY = {"aten::convolution", "aten::convolution_backward", "aten::addmm", "aten::mm"}
OURS = ("sparse_kernels::conv2d", "sparse_kernels::linear")
STEP = "a whole step"


def shares_of_products(step: Callable[[], Any], rounds: int) -> list[float]:
    """Return the share of each of some steps' time, by the clock, that products take."""
    shares = []
    for _ in range(rounds):
        # Kineto, which is for GPUs, writes lines of its own.
        with profile(use_kineto=False) as profiler, record_function(STEP):
            step()
        events = list(profiler.function_events or ())
        (whole,) = (event for event in events if event.name == STEP)
        products = (e.cpu_time_total for e in events if _is_product(e) and not _inside_another(e))
        shares.append(sum(products) / whole.cpu_time_total)
    return shares


def _is_product(event: Any) -> bool:
    return event.name in LIBRARY or event.name.startswith(OURS)


def _inside_another(event: Any) -> bool:
    """Return whether a product is a part of another one, such as the masked path's of ours."""
    parent = event.cpu_parent
    while parent is not None and not _is_product(parent):
        parent = parent.cpu_parent
    return parent is not None
