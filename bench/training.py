"""Time whole training steps, phase by phase, and append the rows to the reports' CSV.

    python -m bench.training                        all networks; on a GPU within --budget seconds
    python -m bench.training --networks wrn28-10 --blocks 64x64 --sparsities 0.8 0.9
    python -m bench.training --threads 1 2          on a CPU: rows for either number of threads
    python -m bench.training --tiny                 small sizes, to check the harness

On a GPU every variant runs alone, in bf16, and the best dense one is what the others are compared
with. On a CPU all variants of a case take turns: sparse and dense in fp32, and what a user would
pick instead. There a step's row "products" is what convolution and linear layers take of it.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import torch

from bench.report.tables import savings, whole_steps
from bench.speed.comparison import Comparison, Times, compare
from bench.speed.correctness import Reference, check_layers
from bench.speed.jobs import say_no_row
from bench.speed.measure import memory, peak_of
from bench.speed.products import PHASE as PRODUCTS
from bench.speed.products import shares_of_products
from bench.speed.steps import Step
from bench.speed.timing import STEP, clock_of, in_turn
from bench.speed.variant import Case, Variant, Workload, variants
from sparse_engine.config.flags import run_command

ON_GPU = variants(
    "auto rows captured", "auto rows fuse captured", "auto rows", "auto rows fuse",
    "auto rows compiled", "auto", "mask-multiply", "masked",
)  # fmt: skip
DENSE_ON_GPU = variants("dense", "dense captured", "dense compiled captured", "dense compiled")
ON_CPU = variants(
    "dense compiled", "dense bf16", "slim", "auto", "native", "masked", "mask-multiply"
)  # fmt: skip
# Seconds on a GPU: a variant built, checked and timed; torch.compile; the times of updates; and
# what is right, once for a case.
EAGER, COMPILED, UPDATE, REFERENCE = 6.0, 45.0, 3.0, 2.5
WITH_UPDATES = variants("auto", "auto rows")  # our own in its simplest form


class Training(Comparison):
    """Training steps; the last case's reference is kept."""

    report, first_seconds = "training", REFERENCE

    @cached_property
    def _reference(self) -> Callable[[Case, str, bool], Reference]:
        return lru_cache(maxsize=2)(Reference.of)  # of the case at hand and of the dense network

    def seconds(self, variant: Variant) -> float:
        """Return the seconds that a variant should take on a GPU."""
        return EAGER + COMPILED * variant.compiled + UPDATE * (variant in WITH_UPDATES)

    def prepare(self, case: Case, variant: Variant) -> Workload:
        """Build, warm up, capture and check a step.

        The peak is that of one step after warm-up, or of the capture of one, so that what the
        libraries' own searches take is left out.

        Raises:
            WrongResult, Unavailable, InputError: it gives no row.
        """
        before = memory(self.device)
        step = Step(case, variant, self.device)
        error = check_layers(step)
        start = {name: t.detach().clone() for name, t in step.model.state_dict().items()}
        step.run()
        peak = peak_of(step.capture, self.device, before) if variant.captured else None
        with torch.no_grad():
            for name, tensor in step.model.state_dict().items():
                tensor.copy_(start[name])
        step_error = self._reference(case, self.device, step.bf16).check(step)
        if peak is not None:
            peak -= sum(t.nbytes for t in start.values()) / 1e6
        del start
        if peak is None and self.device == "cuda":
            peak = peak_of(step.run, self.device, before)
        step.columns = {
            "state_mb": step.state_bytes() / 1e6,
            "peak_mb": peak,
            "error": None if error is None else f"{error:.1e}",
            "step_error": f"{step_error:.1e}",
        }
        return step

    def phases(self, step: Step, times: Times) -> Times:
        """Return the times of a step's phases, of products and of topology updates, if timed."""
        if self.device == "cpu" and step.replay is None:
            shares = shares_of_products(step.run, len(times[STEP]))
            times = {**times, PRODUCTS: [s * t for s, t in zip(shares, times[STEP])]}
        if step.variant not in WITH_UPDATES:
            return times
        clock = clock_of(self.device)
        rounds = 5 if self.device == "cuda" else 2
        try:
            updates = in_turn({"update": step.updating_phases()}, rounds, clock)["update"]
        except Exception as error:
            say_no_row(f"{step.case} {step.variant} topology update", error)
            return times
        del updates[STEP]
        return {**times, **updates}


def main(arguments: Sequence[str]) -> None:
    """Measure, and say what the savings are worth."""
    records = compare(Training, arguments, DENSE_ON_GPU, ON_GPU, ON_CPU)
    print(f"\n{savings(whole_steps(records.rows))}")


if __name__ == "__main__":
    run_command(main)
