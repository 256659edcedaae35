"""The settings of how a run goes; config.py has those of what it does. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def setting(group: str, help: str, default: Any = None, **rules: Any) -> Any:
    """Declare a field that is also a flag.

    Args:
        group: heading in --help.
        help: one line; None as default means that the recipe decides.
        default: value without flag, file or recipe.
        rules: `kind` (int, float, str, bool, or dict for a JSON object), `choices`, `above` and
            `least` and `most` (limits of numbers).
    """
    return field(default=default, metadata={"group": group, "help": help, **rules})


@dataclass(frozen=True)
class RunSettings:
    """Method, folders, device, implementation, and what keeps a run safe."""

    method: str = setting("run", "training method", "edst", kind=str)
    out: str | None = setting("run", "run folder [runs/METHOD-DATASET-NUMBER]", kind=str)
    resume: str | None = setting("run", "continue the run in this folder", kind=str)
    config: str | None = setting("run", "JSON file with settings; flags win over it", kind=str)
    dry_run: bool = setting("run", "print the plan and train nothing", False, kind=bool)
    seed: int = setting("run", "seed of everything random", 0, kind=int, least=0, most=2**31)
    device: str = setting("run", "where to run", "auto", kind=str, choices=("auto", "cpu", "cuda"))
    dtype: str = setting(
        "run",
        "bf16 and fp16 run under autocast, fp16 with a scaled loss",
        "fp32",
        kind=str,
        choices=("fp32", "bf16", "fp16"),
    )
    backend: str = setting(
        "run",
        "implementation of the sparse layers",
        "auto",
        kind=str,
        choices=("auto", "triton", "gemm", "masked"),
    )
    cuda_graph: str = setting(
        "run",
        "replay the training step as a CUDA graph: auto does on a GPU, where it can",
        "auto",
        kind=str,
        choices=("auto", "on", "off"),
    )
    fuse: str = setting(
        "run",
        "rows order, and norms inside the passes of convolutions: auto does on a GPU",
        "auto",
        kind=str,
        choices=("auto", "on", "off"),
    )
    compile: bool = setting("run", "run the network through torch.compile", False, kind=bool)
    checkpoint_every: str | None = setting(
        "run", "checkpoints within epochs too: steps (500) or seconds (600s)", kind=str
    )
    deterministic: bool = setting(
        "run", "only algorithms that give the same bits every time on one device", False, kind=bool
    )
    skip_nonfinite: int = setting(
        "run",
        "steps that are left out because loss or gradient is not finite, before the run fails",
        0,
        kind=int,
        least=0,
    )
    parallel: str = setting(
        "run",
        "processes (torchrun) share each batch, or the members of an ensemble; or members are "
        "grouped: one process trains all as one network",
        "data",
        kind=str,
        choices=("data", "members", "grouped"),
    )
    sync_batch_norm: bool = setting(
        "run", "on GPUs: batch-norm statistics over the images of all processes", False, kind=bool
    )
    timeout: float = setting(
        "run",
        "seconds that a process waits for another",
        600.0,
        kind=float,
        least=1,
        most=1e6,
    )
    tune: bool = setting(
        "run",
        "first time the GPU kernels' tiles, or on a CPU up to which density gemm pays",
        False,
        kind=bool,
    )
