"""Whether the kernels are right on this device: seconds, before anything is timed.

    python -m bench.speed.smoke                        on a GPU its kernels, on a CPU what that has
    SPARSE_ENGINE_BACKEND=triton TRITON_INTERPRET=1 python -m bench.speed.smoke --tiny interpreted

Plain passes are compared with the dense library, fused ones with their definition in fp32. The exit
code is 1 if something is wrong, 2 if Triton cannot build what launches its kernels.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch

from bench.speed.correctness import LAYER_LIMITS, fused_errors, relative_error
from bench.speed.machine import check_tools
from bench.speed.problems import Layer, Problem, make_problem, right_results, sparse_passes
from sparse_engine.config.flags import Parser, run_command
from sparse_engine.errors import RunFailure
from sparse_kernels import Norm
from sparse_kernels.dispatch.backend import VARIABLE, forced_backend
from sparse_kernels.memory_order import in_order


class Check(NamedTuple):
    """A layer with blocks, activations in an order, and whether it is fused with what is around."""

    layer: Layer
    block: tuple[int, int]
    order: str = "rows"
    fused: bool = False

    def __str__(self) -> str:
        fused = " fused" * self.fused
        return f"{self.layer.name} {self.block[0]}x{self.block[1]} {self.order}{fused}"


WIDE = Layer("conv 3x3 128 -> 256 at 8x8", (256, 128, 3, 3), (8, 8), 128, 2)
POINTWISE = Layer("conv 1x1 256 -> 128 at 5x5", (128, 256, 1, 1), (5, 5), 24, 2)
LINEAR = Layer("linear 256 -> 512", (512, 256), (), 384)
# Few, for each is compiled three times; what is timed later is checked as well. A batch of 128, for
# with a smaller one TMA, which the real networks use, moves no tile.
CHECKS = (
    Check(WIDE, (64, 64)),
    Check(WIDE, (32, 32)),
    Check(WIDE, (64, 64), fused=True),
    Check(WIDE, (32, 32), fused=True),
    Check(WIDE, (128, 128)),
    Check(WIDE, (128, 128), fused=True),
    Check(WIDE, (64, 64), "channels_last"),
    Check(POINTWISE, (64, 64)),
    Check(LINEAR, (64, 64)),
)
SMALL = Layer("conv 3x3 32 -> 32 at 2x2", (32, 32, 3, 3), (2, 2), 128, 128)
TINY = (
    Check(SMALL, (32, 32)),
    Check(SMALL, (32, 32), fused=True),
    Check(SMALL, (16, 32), "channels_last", fused=True),
)


def smoke(device: str, tiny: bool = False) -> None:
    """Print how many results are right, with their largest error.

    Args:
        device: "cuda", or "cpu" for what a CPU has, or with SPARSE_ENGINE_BACKEND=triton and
            TRITON_INTERPRET=1 for the kernels, interpreted.
        tiny: of small sizes.

    Raises:
        InputError: Triton cannot build its launchers.
        RunFailure: some are wrong, or could not run.
    """
    if device == "cuda":
        check_tools()
    triton = device == "cuda" or os.environ.get(VARIABLE) == "triton"
    backend = "triton" if triton else "native"
    wrong: list[str] = []
    right: list[float] = []
    for check in TINY if tiny else CHECKS:
        try:
            errors = _errors(check, device, backend)
        except Exception as failure:
            words = (str(failure).strip() or "no message").splitlines()[0][:100]
            wrong.append(f"{check} cannot run: {type(failure).__name__}: {words}")
            continue
        right += [error for error in errors.values() if error < LAYER_LIMITS["bf16"]]
        wrong += [f"{check} {n} {e:.1e}" for n, e in errors.items() if not e < LAYER_LIMITS["bf16"]]
    count, largest = len(right) + len(wrong), max(right, default=0.0)
    print(f"{backend}: {len(right)} of {count} results right, error at most {largest:.1e}")
    if wrong:
        raise RunFailure(f"wrong: {'; '.join(wrong)}")


def _errors(check: Check, device: str, backend: str) -> dict[str, float]:
    problem = make_problem(check.layer, check.block, 0.3, device)
    if check.fused:
        with forced_backend(backend):
            return _fused(problem, check.order)
    passes, right = sparse_passes(problem, check.order, backend), right_results(problem)
    return {
        name: relative_error(run().float(), right[name].float()) for name, run in passes.items()
    }


def _fused(problem: Problem, order: str) -> dict[str, float]:
    """Return the errors of a convolution between norm with ReLU, residual and statistics."""
    x, residual = in_order(problem.x, order), in_order(problem.grad, order)
    variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    weight, bias = torch.rand_like(mean) + 0.5, torch.randn_like(mean)
    norm, geometry = Norm(mean, variance, weight, bias), problem.layer.geometry
    around = {"norm": norm, "residual": residual, "statistics": True}
    return fused_errors(x, problem.values, problem.layout, None, *geometry, **around)


def main(arguments: Sequence[str]) -> None:
    """Check; what is wrong is a failure."""
    parser = Parser(prog="python -m bench.speed.smoke", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes, for the interpreter")
    tiny = parser.parse_strictly(arguments).tiny
    smoke("cuda" if torch.cuda.is_available() else "cpu", tiny)


if __name__ == "__main__":
    run_command(main)
