"""Count the bytes that a training step moves, operator by operator, without a GPU or any data.

    python -m bench.dev.traffic                                       WRN-28-10, batch 128: a table
    python -m bench.dev.traffic --model resnet50 --image 224 --operators

Every operator reads its inputs and writes its results once; a library's batch norm in training
reads its images twice, and a convolution's backward its gradient twice. Views cost nothing. What a
convolution reads again through L2, and all that fits into it, is not seen: a lower bound in units
of the largest images, not a time. Forward and backward of a step, without the optimizer.
"""

import argparse
import math
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.dev.harness import print_table
from bench.speed.networks import Network
from bench.speed.variant import DENSE, Case, Variant, Workload
from sparse_kernels.dispatch.backend import VARIABLE

# Operators that read some inputs twice: which ones, by position.
READ_TWICE = {
    "native_batch_norm": (0,),
    "cudnn_batch_norm": (0,),
    "native_batch_norm_backward": (0, 1),
    "cudnn_batch_norm_backward": (0, 1),
    "convolution_backward": (0,),
}
COLUMNS = ("network", "GB", "convolutions, linear", "the rest", "operators")
FLAGS = {
    "model": "wrn28-10", "batch": 128, "image": 32, "sparsity": 0.9, "block": 32,
    "operators": False,
}  # fmt: skip
VARIANTS = {
    "dense, eager": DENSE,
    "sparse": Variant("auto", rows=True),
    "sparse, fused": Variant("auto", rows=True, fuse=True),
}
FREE = ("empty", "new_empty", "_unsafe_view")
MULTIPLY = ("conv", "mm", "linear")


class Traffic(TorchDispatchMode):
    """Adds up bytes and calls by operator while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        nothing = function.is_view or function.namespace == "prim" or name.startswith(FREE)
        if not nothing:
            moved = tree_leaves((args, kwargs, read_twice(function, args), out))
            self.bytes[name] += sum(map(size, moved))
            self.calls[name] += 1
        return out

    def total(self, kind: str = "") -> int:
        """Return the bytes of the operators that "multiply", of the "others", or of all."""
        kinds = {n: "multiply" if any(m in n for m in MULTIPLY) else "others" for n in self.bytes}
        return sum(b for name, b in self.bytes.items() if not kind or kinds[name] == kind)


def read_twice(function: Any, args: Any) -> list[Any]:
    """Return which arguments of an operator are read twice."""
    name = function.overloadpacket.__name__
    if name != "conv2d_fused_backward":
        return [args[i] for i in READ_TWICE.get(name, ())]
    # The input gradient reads the layer's input, as the weight gradient does, only behind a norm.
    named = {known.name: given for known, given in zip(function._schema.arguments, args)}
    both = named["x_wanted"] and named["values_wanted"]
    return [named["grad"]] * both + [named["x"]] * (both and named["scale"] is not None)


def size(x: Any) -> int:
    """Return the bytes of a tensor, which what was expanded has not; 0 of anything else."""
    if not isinstance(x, Tensor):
        return 0
    return math.prod(n for n, stride in zip(x.shape, x.stride()) if stride) * x.element_size()


def count_step(model: nn.Module, images: tuple[int, ...], dtype: torch.dtype) -> Traffic:
    """Return what forward and backward of a batch of images [N, C, H, W] move under autocast."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(images).to(memory_format=torch.channels_last)
        with Traffic() as traffic, torch.autocast("cpu", dtype=dtype):
            torch.autograd.grad(model(x).float().sum(), parameters)
    return traffic


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each network, and for each of its operators if asked for."""
    # What the kernels would do: fake tensors need neither a GPU nor the interpreter itself.
    os.environ |= {VARIABLE: "triton", "TRITON_INTERPRET": "1"}
    image = (3, options.image, options.image)
    network = Network(options.model, image, options.batch, options.batch)
    case = Case(network, options.sparsity, "uniform", f"{options.block}x{options.block}")
    for name, variant in VARIANTS.items():
        workload = Workload(case, variant, "cpu")
        model = workload.case.model().to(memory_format=torch.channels_last)
        workload.rearrange(model)
        traffic = count_step(model, (options.batch, *image), torch.bfloat16)
        totals = [f"{traffic.total(kind) / 1e9:.3g}" for kind in ("", "multiply", "others")]
        yield [name, *totals, f"{sum(traffic.calls.values())}"]
        for operator, moved in traffic.bytes.most_common() if options.operators else ():
            yield [f"- {operator}", f"{moved / 1e9:.2f}", "", "", f"{traffic.calls[operator]}"]


if __name__ == "__main__":
    print_table(__doc__, COLUMNS, rows, FLAGS)
