"""Test-time throughput of an ensemble of sparse tickets against one dense network.

    python -m bench.ensemble                        three tickets of WRN-28-10
    python -m bench.ensemble --tiny                 small sizes, to check the harness

The rows' phase is "prediction": of one batch, by all members (speed/prediction.py): one after
another, grouped, or stacked by torch.func.vmap.
"""

from collections.abc import Sequence

from bench.speed.comparison import Comparison, Times, compare
from bench.speed.measure import memory, peak_of
from bench.speed.prediction import PHASE, Prediction
from bench.speed.variant import Case, Variant, Workload, variants
from bench.training import COMPILED, EAGER, REFERENCE
from sparse_engine.config.flags import run_command

DENSE_ON_GPU = variants("dense captured", "dense compiled captured", "dense")
ON_GPU = variants(
    "auto rows captured", "auto rows grouped captured", "masked vmapped captured", "auto rows",
    "auto rows grouped", "auto rows compiled",
)  # fmt: skip
ON_CPU = variants("auto", "auto grouped", "masked", "masked vmapped")


class Ensembles(Comparison):
    """Predictions by tickets, and by the dense network."""

    report, subject = "ensemble", f"{PHASE}: "

    def seconds(self, variant: Variant) -> float:
        """Return the seconds that a variant should take on a GPU."""
        return EAGER + REFERENCE + COMPILED / 2 * variant.compiled

    def prepare(self, case: Case, variant: Variant) -> Workload:
        """Build, warm up, capture and check a prediction.

        Raises:
            WrongResult, Unavailable, InputError: it gives no row.
        """
        before = memory(self.device)
        prediction = Prediction(case, variant, self.device)
        prediction.run()
        if variant.captured:
            prediction.capture()
        error = prediction.check()
        peak = peak_of(prediction.run, self.device, before)
        prediction.columns = {"peak_mb": peak, "error": f"{error:.1e}"}
        return prediction

    def phases(self, workload: Workload, times: Times) -> Times:
        """Return the times of the prediction alone, which is all of a step."""
        return {PHASE: times[PHASE]}


def main(arguments: Sequence[str]) -> None:
    """Measure until done or out of time."""
    compare(Ensembles, arguments, DENSE_ON_GPU, ON_GPU, ON_CPU)


if __name__ == "__main__":
    run_command(main)
