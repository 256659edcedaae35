"""Test-time throughput of an ensemble of sparse tickets against one dense network.

    python -m bench.ensemble                        three tickets of WRN-28-10
    python -m bench.ensemble --tiny                 small sizes, to check the harness

The rows' phase is "prediction": of one batch, by all members (prediction.py): one after another,
grouped, or stacked by torch.func.vmap.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.report.records import Records
from bench.speed.jobs import Job, say_no_row
from bench.speed.measure import baseline, facts_of, line, measure, peak_of
from bench.speed.prediction import PHASE, Prediction
from bench.speed.timing import STEP, milliseconds, quantile, ratios
from bench.speed.variant import Case
from bench.training import COMPILED, EAGER, REFERENCE, take

DENSE = ("dense captured", "dense compiled captured", "dense")
ON_GPU = (
    "auto rows captured", "auto rows grouped captured", "masked vmapped captured", "auto rows",
    "auto rows grouped", "auto rows compiled",
)  # fmt: skip
ON_CPU = ("auto", "auto grouped", "masked", "masked vmapped")


class Ensembles:
    """What the cases of one run share: where rows go."""

    def __init__(self, records: Records, device: str, rounds: int = 3) -> None:
        self.records, self.device, self.rounds = records, device, rounds

    def jobs(self, case: Case, contenders: Sequence[str]) -> list[Job]:
        """Return the jobs of a case: one for each contender on a GPU, one for all on a CPU."""
        groups = [[c] for c in contenders] if self.device == "cuda" else [["dense", *contenders]]
        return [self._job(case, group) for group in groups]

    def _job(self, case: Case, contenders: Sequence[str]) -> Job:
        each = EAGER + REFERENCE
        seconds = sum(each + COMPILED / 2 * ("compiled" in c) for c in contenders)
        name = f"{case}: prediction: {', '.join(contenders)}"
        return Job(name, seconds, lambda: self.run(case, contenders))

    def run(self, case: Case, contenders: Sequence[str]) -> None:
        """Check and time contenders that take turns; append their rows."""
        ready: dict[str, Prediction] = {}
        errors, peaks = {}, {}
        for name in contenders:
            try:
                before = torch.cuda.memory_allocated() if self.device == "cuda" else 0
                found = Prediction(case, name, self.device)
                found.run()
                if "captured" in found.options:
                    found.capture_prediction()
                errors[name] = found.check()
                peaks[name] = peak_of(found.run, self.device, before)
                ready[name] = found
            except Exception as error:
                say_no_row(f"{case} {name}", error)
        if not ready:
            return
        phases = {name: found.phases() for name, found in ready.items()}
        times, energy = measure(phases, self.device, self.rounds)
        together = times.get("dense") if len(ready) > 1 else None
        dense = baseline(self.records, case, together)
        for name, found in ready.items():
            seconds = times[name][PHASE]
            rate = sum(found.flops.values()) * case.network.batch / 1e12 / quantile(seconds, 0.5)
            row = facts_of("ensemble", found) | milliseconds(seconds) | dense(PHASE)
            if together is not None:
                row |= ratios(seconds, together[PHASE])
            added = self.records.add(
                **row,
                phase=PHASE,
                tflops=rate * found.flops_ratio(),
                dense_tflops=rate,
                peak_mb=None if peaks[name] is None else peaks[name] / 1e6,
                energy_j=energy.get(STEP),
                error=f"{errors[name]:.1e}",
            )
            print(line(added), flush=True)


def main() -> None:
    """Measure until done or out of time."""
    take("ensemble", Ensembles, DENSE, ON_GPU, ON_CPU)


if __name__ == "__main__":
    main()
