"""Choose a training for a budget of seconds, and say why: sparse-engine plan --seconds X.

A study's rows say what each training reached, and steps timed here what it takes. Nothing is
trained.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sparse_engine.config.config import FIELDS, Config
from sparse_engine.config.flags import Parser, user_path
from sparse_engine.config.values import check_values
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.installed import require
from sparse_engine.methods.registry import METHODS
from sparse_engine.methods.resolve import resolve
from sparse_engine.planning.candidates import Candidate, candidate, command, name_of
from sparse_engine.planning.choice import Choice, Priced, choose
from sparse_engine.planning.rows import PACKAGED, Row, read_rows

if TYPE_CHECKING:
    import torch

    from sparse_engine.data.catalog import DatasetInfo
    from sparse_engine.planning.seconds import Plan

# Flags that training has too, by its names, and what help says of them.
SHARED = {
    "dataset": "as of sparse-engine train [digits]",
    "data_dir": "folder with the data; data sets known by name need none",
    "model": "the network, in all its width [the data set's]",
    "batch_size": "images a step [the data set's]",
    "dense_epochs": "how long a dense network trains; others in proportion [the data set's]",
    "device": "auto, cpu or cuda [auto]",
    "dtype": "fp32, bf16 or fp16 [fp32]",
}


def main(arguments: Sequence[str]) -> None:
    """Run the command line `arguments`."""
    parser = new_parser()
    flags = parser.parse_strictly(arguments)
    with parser.naming_own_flags():
        dense, rows = _checked(flags)
        require("sparse-engine plan", "tqdm")
        # From here on torch is needed.
        from sparse_engine.device import on_backend, repeatable

        with on_backend(dense), repeatable(False):
            _plan(flags.seconds, dense, rows, flags.threads)


def new_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(
        prog="sparse-engine plan",
        usage="%(prog)s --seconds X [flags]",
        description=(__doc__ or "").partition(":")[0] + ".",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--seconds", type=float, required=True, metavar="X", help="for the whole training"
    )
    for name, text in SHARED.items():
        flag, kind = f"--{name.replace('_', '-')}", FIELDS[name].metadata["kind"]
        parser.add_argument(
            flag, type=kind, metavar="N" if kind is int else name.upper(), help=text
        )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="of a CPU [those training would have]"
    )
    parser.add_argument(
        "--rows", type=user_path, default=PACKAGED, metavar="CSV", help="of a study of your own"
    )
    return parser


def _checked(flags: argparse.Namespace) -> tuple[Config, list[Row]]:
    """Return the user's dense run, resolved, and the study's rows."""
    if not 0 < flags.seconds < math.inf:
        raise InputError(f"--seconds must be above 0 and finite, found {flags.seconds:g}")
    if flags.threads is not None and flags.threads < 1:
        raise InputError(f"--threads must be at least 1, found {flags.threads}")
    given = {name: getattr(flags, name) for name in SHARED if getattr(flags, name) is not None}
    dense = resolve(Config(method="dense", **check_values(given, "flags")))
    return replace(dense, epochs=dense.dense_epochs), read_rows(flags.rows)


def _plan(seconds: float, dense: Config, rows: Sequence[Row], threads: int | None) -> None:
    """Print the table, the choice and the line of JSON."""
    import torch

    from sparse_engine.data.load import dataset_info
    from sparse_engine.device import choose_device
    from sparse_engine.planning import words
    from sparse_engine.planning.seconds import price, timing_seconds
    from sparse_engine.training.dry_run import stored_data
    from sparse_engine.training.result import print_json
    from sparse_kernels.timing import CoreWait, disturbance

    device = choose_device(dense)
    if threads is not None:
        torch.set_num_threads(threads)
    place = f"{device}, {dense.dtype}, CPU threads {torch.get_num_threads()}"
    data = stored_data(dense)
    info = dataset_info(dense.dataset) if data is None else data.info
    plans = _plans(rows, dense, info, device)
    limit = timing_seconds(seconds)
    print(f"timing steps of {dense.model} for about {limit:.0f} seconds on {place}", flush=True)
    wait = CoreWait(device.type == "cuda")
    priced, clock = price(plans, dense, info, device, limit)
    core_wait = wait.share()
    if disturbed := disturbance(core_wait):
        raise RunFailure(
            f"{disturbed}; wait until the machine is idle, or say --threads 1, which is timed by "
            "this process's own clock"
        )
    choice, chosen = _chosen(priced, seconds, dense, info.train_size)
    line, on_gpu = command(chosen, threads), device.type == "cuda"
    differences = [*words.extrapolations(choice, dense, info, on_gpu, clock.images)]
    print(f"\n{words.table(priced, clock.dense, seconds)}\n{words.NOTE}\n")
    print(words.in_sentences(choice, rows, seconds, differences, line))
    facts = {
        **{"seconds": seconds, "dataset": dense.dataset, "model": dense.model},
        **{"device": str(device), "threads": torch.get_num_threads(), "rounds": clock.rounds},
        **{"dense_seconds_per_step": clock.dense, "timed_images": clock.images},
        "core_wait": core_wait,
    }
    found = words.as_json(choice, priced, seconds)
    print_json({**facts, **found, "command": line, "extrapolates": differences})


def _plans(
    rows: Sequence[Row], dense: Config, info: DatasetInfo, device: torch.device
) -> list[Plan]:
    """Return how the trainings that can be had here are timed; a line says which cannot.

    Raises:
        InputError: no sparse one can, though the study has some.
    """
    from sparse_engine.planning.seconds import plan_of

    plans, reasons, sparse = [], [], 0
    for row in rows:
        is_sparse = METHODS[row.settings["method"]].usual_sparsity > 0
        try:
            found = candidate(row, dense, info.train_size)
            plans.append(plan_of(found, info, device, info.train_size))
            sparse += is_sparse
        except InputError as error:
            reasons.append((is_sparse, f"{name_of(row, row.network)} cannot be had here: {error}"))
    if not plans:
        raise InputError(reasons[0][1])
    if not sparse and (refused := [reason for is_sparse, reason in reasons if is_sparse]):
        raise InputError(refused[0])
    for _, reason in reasons:
        print(reason)
    return plans


def _chosen(
    priced: list[Priced], seconds: float, dense: Config, images: int
) -> tuple[Choice, Candidate]:
    """Return the choice, and the training that it is, of the length that fits.

    What cannot be so short is no choice.
    """
    from sparse_engine.training.run import plan_phases

    while True:
        choice = choose(priced, seconds)
        option = choice.chosen
        try:
            found = candidate(option.priced.candidate.row, dense, images, option.epochs)
            plan_phases(found.config, images)
        except InputError:
            priced = [one for one in priced if one is not option.priced]
            if not priced:
                raise
            continue
        return choice, found
