"""Whether the kernels are right on this device: seconds, before anything is timed."""

from __future__ import annotations

from bench.problems import Layer, dense_passes, make_problem, sparse_passes
from sparse_kernels.reference import gather_blocks

WIDE = Layer("conv 3x3 128 -> 256 at 8x8", (256, 128, 3, 3), (8, 8), 128, 2)
POINTWISE = Layer("conv 1x1 256 -> 128 at 5x5", (128, 256, 1, 1), (5, 5), 24, 2)
LINEAR = Layer("linear 256 -> 512", (512, 256), (), 384)
# Few, for each is compiled three times; what is timed later is checked as well.
CASES = (
    (WIDE, (64, 64), "rows"),
    (WIDE, (32, 32), "rows"),
    (WIDE, (128, 128), "rows"),
    (WIDE, (64, 64), "channels_last"),
    (POINTWISE, (64, 64), "rows"),
    (LINEAR, (64, 64), "rows"),
)
LARGEST_ERROR = 2e-2  # as in kernels.py


def smoke(device: str) -> None:
    """Print which passes are right, with their largest error.

    Raises:
        ArithmeticError: some are wrong, or could not run.
    """
    wrong, largest, count = [], 0.0, 0
    backend = "triton" if device == "cuda" else "gemm"
    for layer, block, order in CASES:
        problem = make_problem(layer, block, 0.3, device)
        layout, right = problem.layout, {n: run() for n, run in dense_passes(problem).items()}
        dense = right["weight gradient"].reshape(layout.shape)
        right["weight gradient"] = gather_blocks(dense, layout.tensors(), layout.sizes())
        for name, run in sparse_passes(problem, order, backend).items():
            expected, count = right[name].float(), count + 1
            error = float((run().float() - expected).norm() / expected.norm())
            if error < LARGEST_ERROR:
                largest = max(largest, error)
            else:
                wrong.append(f"{layer.name} {block[0]}x{block[1]} {order} {name} {error:.1e}")
    print(f"{backend}: {count - len(wrong)} of {count} passes right, error at most {largest:.1e}")
    if wrong:
        raise ArithmeticError(f"wrong: {'; '.join(wrong)}")
