"""Reports on whole networks: variants are checked, timed in turn, and written down."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from bench.report import records as files
from bench.report.records import Records, best_dense
from bench.report.tables import line
from bench.speed.jobs import Budget, Job, run_jobs, say_no_row
from bench.speed.measure import measure
from bench.speed.networks import NETWORKS, TINY, network_of
from bench.speed.prediction import PHASE
from bench.speed.products import PHASE as PRODUCTS
from bench.speed.roofline import rates_of
from bench.speed.timing import STEP, quantile, ratios, speeds
from bench.speed.variant import DENSE, Case, Variant, Workload, variants
from sparse_engine.config.flags import Parser, user_path
from sparse_engine.layers.blocks import parse_block

BLOCKS = ("64x64", "auto", "32x32", "128x128", "16x16")
SPARSITIES = (0.8, 0.9, 0.5, 0.95)
# Below it a row is called dense, whatever blocks its layers have.
SPARSE_SHARE = 0.8
# Passes over the layers' FLOPs: the backward has two products for each of the forward's.
PASSES = {"forward": 1, "backward": 2, STEP: 3, PRODUCTS: 3, PHASE: 1}
Times = Mapping[str, Sequence[float]]  # seconds by phase and round


class Comparison(ABC):
    """The cases of one run of a report: where rows go, and how variants are compared."""

    report: str  # names the CSV
    subject = ""  # what of a case is timed, as jobs are named
    first_seconds = 0.0  # that a case's first job takes on top

    def __init__(self, records: Records, device: str, rounds: int = 3) -> None:
        self.records, self.device, self.rounds = records, device, rounds

    @abstractmethod
    def seconds(self, variant: Variant) -> float:
        """Return the seconds that a variant should take on a GPU."""

    @abstractmethod
    def prepare(self, case: Case, variant: Variant) -> Workload:
        """Build, warm up, capture and check a variant; its columns have what came of that.

        Raises:
            WrongResult, Unavailable, InputError: it gives no row.
        """

    def phases(self, workload: Workload, times: Times) -> Times:
        """Return the times that are written, given those that were measured in turn."""
        return times

    def jobs(self, case: Case, variants: Sequence[Variant]) -> list[Job]:
        """Return the jobs of a case: one for each variant on a GPU, one for all on a CPU."""
        groups = [[v] for v in variants] if self.device == "cuda" else [[DENSE, *variants]]
        return [
            Job(
                f"{case}: {self.subject}{', '.join(map(str, group))}",
                self.first_seconds * (not number) + sum(map(self.seconds, group)),
                partial(self.run, case, group),
            )
            for number, group in enumerate(groups)
        ]

    def run(self, case: Case, variants: Sequence[Variant]) -> None:
        """Check and time variants that take turns; append their rows."""
        ready: dict[Variant, Workload] = {}
        for variant in variants:
            try:
                ready[variant] = self.prepare(case.of(variant), variant)
            except Exception as error:
                say_no_row(f"{case.of(variant)} {variant}", error)
        if not ready:
            return
        phases = {variant: workload.phases() for variant, workload in ready.items()}
        measured, joules = measure(phases, self.device, self.rounds)
        times = {v: self.phases(workload, measured[v]) for v, workload in ready.items()}
        best = fastest_dense(measured) if len(ready) > 1 else None
        dense = (str(best), times[best]) if best else None
        for variant, workload in ready.items():
            for row in self.rows(workload, times[variant], dense, joules):
                print(line(self.records.add(**row)), flush=True)

    def rows(
        self,
        workload: Workload,
        times: Times,
        dense: tuple[str, Times] | None = None,
        joules: float | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the columns of each phase of a workload.

        Args:
            workload: checked.
            times: of its phases.
            dense: name and times of the fastest dense network, where they took turns.
            joules: of a whole step.
        """
        case, share = workload.case, workload.kernel_share()
        facts = {
            "report": self.report,
            "dtype": workload.dtype,
            "subject": case.network.name,
            "batch": case.network.batch,
            "contender": workload.variant,
            "label": "sparse" if share is not None and share >= SPARSE_SHARE else "dense",
            "kernel_share": share,
            "density": workload.density,
            **workload.columns,
        }
        if case.sparsity:
            choice = {"distribution": case.distribution, "block": case.blocks}
            facts |= {"sparsity": case.sparsity, **choice}
        flops = sum(workload.flops.values()) * case.network.batch
        rates = rates_of(files.device_name(self.device))
        for phase, seconds in times.items():
            columns = speeds(seconds, PASSES.get(phase, 0) * flops, workload.flops_ratio)
            useful = columns["tflops"]
            if dense is None:
                best = best_dense(self.records.rows, subject=case.network.name, phase=phase)
                if best:
                    columns |= {"dense_ms": best["p50_ms"], "against": best["contender"]}
            elif phase in dense[1]:
                against, of_dense = dense
                columns |= ratios(seconds, of_dense[phase])
                columns |= {"dense_ms": 1e3 * quantile(of_dense[phase], 0.5), "against": against}
            yield {
                **facts,
                **columns,
                "phase": phase,
                "roofline": 1e12 * useful / rates.tensor if useful and rates else None,
                "energy_j": joules if phase in (STEP, PHASE) else None,
            }


def fastest_dense(times: Mapping[Variant, Times]) -> Variant | None:
    """Return the fastest dense variant in the data type of the device: bf16 on a CPU is a rival."""
    dense = [v for v in times if v.kind == DENSE.kind and not v.bf16]
    return min(dense, key=lambda variant: quantile(times[variant][STEP], 0.5), default=None)


def compare(
    kind: type[Comparison],
    arguments: Sequence[str],
    dense: Sequence[Variant],
    on_gpu: Sequence[Variant],
    on_cpu: Sequence[Variant],
) -> Records:
    """Do the jobs that a command line asks for, until done or out of time.

    Args:
        kind: of comparison.
        arguments: of the command line.
        dense: a GPU's dense variants, which come first.
        on_gpu: its other variants, unless some are asked for.
        on_cpu: those of a CPU, which take turns with the dense network.

    Returns:
        The file, with all rows of this run.

    Raises:
        InputError: the arguments name what there is not; nothing has been written.
    """
    parser = Parser(prog=f"python -m bench.{kind.report}", description="times of whole networks")
    parser.add_argument("--out", type=user_path, default=files.REPORTS, help="folder of the CSV")
    parser.add_argument("--budget", type=float, default=3600, help="seconds")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check the harness")
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1], help="of a CPU; several numbers in turn"
    )
    parser.add_argument("--rounds", type=int, default=3, help="on a CPU")
    parser.add_argument("--networks", nargs="*", default=["wrn28-10"], help=", ".join(NETWORKS))
    parser.add_argument("--sparsities", nargs="*", type=float, default=SPARSITIES)
    parser.add_argument("--distributions", nargs="*", default=["uniform"])
    parser.add_argument("--blocks", nargs="*", default=BLOCKS)
    # The second name is an earlier one.
    parser.add_argument(
        "--variants", "--contenders", nargs="*", default=[], help="such as 'auto rows' masked"
    )
    options = parser.parse_strictly(arguments)
    if options.tiny:
        options.blocks, options.sparsities = ["16x16"], [0.8]
    networks = [TINY] if options.tiny else [network_of(name) for name in options.networks]
    asked = variants(*options.variants)
    for block in options.blocks:
        parse_block(block)
    choices = itertools.product(options.sparsities, options.distributions, options.blocks)
    choices, budget, run = list(choices), Budget(options.budget), files.now()
    for threads in options.threads:
        device, records = files.opened(options.out, kind.report, threads, run)
        comparison, jobs = kind(records, device, options.rounds), []
        for network in (network.on(device) for network in networks):
            if device == "cuda":
                jobs += comparison.jobs(Case(network), dense)
            for choice in choices:
                case = Case(network, *choice)
                jobs += comparison.jobs(case, asked or (on_gpu if device == "cuda" else on_cpu))
        run_jobs(jobs, budget)
        if device == "cuda":
            break
    print(f"rows appended to {records.path}")
    return records
