"""Time whole training steps, phase by phase, and append the rows to the reports' CSV.

    python -m bench.training                        all networks; on a GPU within --budget seconds
    python -m bench.training --networks wrn28-10 --blocks 64x64 --sparsities 0.8 0.9
    python -m bench.training --tiny                 small sizes, to check the harness

On a GPU every contender runs alone, in bf16, and the best dense one is what the others are compared
with. On a CPU all contenders of a case take turns with the dense network, in fp32.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report import records as files
from bench.report.records import Records
from bench.report.tables import savings
from bench.speed.correctness import Reference
from bench.speed.jobs import Budget, Job, run_jobs, say_no_row
from bench.speed.measure import baseline, line, measure, prepare, rows, topology_times
from bench.speed.networks import NETWORKS, TINY, Network, network_of
from bench.speed.timing import STEP
from bench.speed.variant import Case
from sparse_engine.errors import InputError
from sparse_engine.layers.blocks import parse_block

DENSE = ("dense", "dense captured", "dense compiled captured", "dense compiled")
ON_GPU = (
    "auto rows captured", "auto rows fuse captured", "auto rows", "auto rows fuse",
    "auto rows compiled", "auto", "mask-multiply", "masked",
)  # fmt: skip
ON_CPU = ("auto", "gemm", "masked", "mask-multiply")
BLOCKS = ("64x64", "auto", "32x32", "128x128", "16x16")
SPARSITIES = (0.8, 0.9, 0.5, 0.95)
# Seconds on a GPU: a contender built, checked and timed; torch.compile; the times of updates; and
# what is right, once for a case.
EAGER, COMPILED, UPDATE, REFERENCE = 6.0, 45.0, 3.0, 2.5
WITH_UPDATES = ("auto", "auto rows")  # our own in its simplest form


class Training:
    """What the cases of one run share: where rows go, and the last case's reference."""

    def __init__(self, records: Records, device: str, rounds: int = 3) -> None:
        self.records, self.device, self.rounds = records, device, rounds
        self._references: dict[Case, Reference] = {}

    def jobs(self, case: Case, contenders: Sequence[str]) -> list[Job]:
        """Return the jobs of a case: one for each contender on a GPU, one for all on a CPU."""
        groups = [[c] for c in contenders] if self.device == "cuda" else [["dense", *contenders]]
        return [self._job(case, group, REFERENCE * (not n)) for n, group in enumerate(groups)]

    def _job(self, case: Case, contenders: Sequence[str], more: float) -> Job:
        seconds = more + sum(
            EAGER + COMPILED * ("compiled" in c) + UPDATE * (c in WITH_UPDATES) for c in contenders
        )
        name = f"{case}: {', '.join(contenders)}"
        return Job(name, seconds, lambda: self.run(case, contenders))

    def run(self, case: Case, contenders: Sequence[str]) -> None:
        """Check and time contenders that take turns; append their rows."""
        ready = {}
        for name in contenders:
            own = case.dense() if name.split()[0] == "dense" else case
            try:
                ready[name] = prepare(own, name, self.device, self._reference(own))
            except Exception as error:
                say_no_row(f"{own} {name}", error)
        if not ready:
            return
        phases = {name: found.step.phases() for name, found in ready.items()}
        times, energy = measure(phases, self.device, self.rounds)
        together = times.get("dense") if len(ready) > 1 else None
        dense = baseline(self.records, case, together)
        for name, found in ready.items():
            written = times[name] | self._updates(name, found)
            for row in rows("training", found, written, dense, together, energy):
                print(line(self.records.add(**row)), flush=True)

    def _updates(self, name: str, found) -> dict[str, list[float]]:
        """Return the times of topology updates, with the contenders that have them."""
        if name not in WITH_UPDATES:
            return {}
        try:
            return topology_times(found, self.device, 5 if self.device == "cuda" else 2)
        except Exception as error:
            say_no_row(f"{found.step.case} {name} topology update", error)
            return {}

    def _reference(self, case: Case) -> Reference:
        if case not in self._references:
            kept = case.dense()
            self._references = {c: r for c, r in self._references.items() if c == kept}
            self._references[case] = Reference.of(case, self.device)
        return self._references[case]


def all_jobs(
    options: argparse.Namespace, subject: Any, dense: Sequence[str], contenders: Sequence[str]
) -> list[Job]:
    """Return the jobs of all networks: on a GPU their dense contenders first."""
    jobs = []
    for network in chosen_networks(options, subject.device):
        if subject.device == "cuda":
            jobs += subject.jobs(Case(network), dense)
        for choice in itertools.product(options.sparsities, options.distributions, options.blocks):
            jobs += subject.jobs(Case(network, *choice), options.contenders or contenders)
    return jobs


def chosen_networks(options: argparse.Namespace, device: str) -> list[Network]:
    """Return the networks asked for, with a device's batch.

    Raises:
        InputError: a name that is none of them.
    """
    if options.tiny:
        return [TINY.on(device)]
    return [network_of(name).on(device) for name in options.networks]


def parser() -> argparse.ArgumentParser:
    """Return the flags of reports on networks."""
    found = argparse.ArgumentParser(description="times of whole networks")
    found.add_argument("--out", type=Path, default=files.REPORTS, help="folder of the CSV")
    found.add_argument("--budget", type=float, default=3600, help="seconds")
    found.add_argument("--tiny", action="store_true", help="small sizes, to check the harness")
    found.add_argument("--threads", type=int, default=1, help="of a CPU")
    found.add_argument("--rounds", type=int, default=3, help="on a CPU")
    found.add_argument("--networks", nargs="*", default=["wrn28-10"], help=", ".join(NETWORKS))
    found.add_argument("--sparsities", nargs="*", type=float, default=SPARSITIES)
    found.add_argument("--distributions", nargs="*", default=["uniform"])
    found.add_argument("--blocks", nargs="*", default=BLOCKS)
    found.add_argument("--contenders", nargs="*", help="such as 'auto rows' masked")
    return found


def parsed() -> argparse.Namespace:
    """Return the command line's options, before anything is written.

    Raises:
        InputError: they name what there is not.
    """
    options = parser().parse_args()
    if options.tiny:
        options.blocks, options.sparsities = ["16x16"], [0.8]
    chosen_networks(options, "cpu")
    for block in options.blocks:
        parse_block(block)
    return options


def take(report: str, subject_of: Callable[[Records, str, int], Any], *names: Any) -> Records:
    """Do the jobs that the command line asks for, until done or out of time.

    Args:
        report: names the CSV.
        subject_of: makes what has the jobs, of its records, the device and the rounds.
        names: of the dense contenders, and of the others on a GPU and on a CPU.
    """
    dense, on_gpu, on_cpu = names
    try:
        options = parsed()
        device, records = files.opened(options.out, report, options.threads)
        subject = subject_of(records, device, options.rounds)
        jobs = all_jobs(options, subject, dense, on_gpu if device == "cuda" else on_cpu)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    run_jobs(jobs, Budget(options.budget))
    print(f"rows appended to {records.path}")
    return records


def main() -> None:
    """Measure, and say what the savings are worth."""
    records = take("training", Training, DENSE, ON_GPU, ON_CPU)
    print(f"\n{savings([r for r in records.rows if r['phase'] == STEP])}")


if __name__ == "__main__":
    main()
