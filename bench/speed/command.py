"""The command line of reports on whole networks, and the jobs it asks for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from bench.report.records import REPORTS, Records, opened
from bench.speed.comparison import Comparison
from bench.speed.jobs import Budget, run_jobs
from bench.speed.networks import NETWORKS, TINY, network_of
from bench.speed.variant import Case, Variant, variants
from sparse_engine.config.flags import Parser
from sparse_engine.layers.blocks import parse_block

BLOCKS = ("64x64", "auto", "32x32", "128x128", "16x16")
SPARSITIES = (0.8, 0.9, 0.5, 0.95)


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

    Raises:
        InputError: the arguments name what there is not; nothing has been written.
    """
    parser = Parser(prog=f"python -m bench.{kind.report}", description="times of whole networks")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the CSV")
    parser.add_argument("--budget", type=float, default=3600, help="seconds")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check the harness")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
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
    device, records = opened(options.out, kind.report, options.threads)
    comparison, jobs = kind(records, device, options.rounds), []
    for network in (network.on(device) for network in networks):
        if device == "cuda":
            jobs += comparison.jobs(Case(network), dense)
        for choice in itertools.product(options.sparsities, options.distributions, options.blocks):
            case = Case(network, *choice)
            jobs += comparison.jobs(case, asked or (on_gpu if device == "cuda" else on_cpu))
    run_jobs(jobs, Budget(options.budget))
    print(f"rows appended to {records.path}")
    return records
