"""Train a sparse network or an ensemble of tickets.

sparse-engine train                                   EDST on handwritten digits
sparse-engine train --method rigl --dataset cifar10 --data-dir DIR
sparse-engine train --resume runs/edst-digits-1       continue a run
sparse-engine train --method edst --dataset cifar10 --dry-run   what it would cost

The last line on stdout is one JSON object. Exit code 2 is for bad input, 1 for a failed run.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sparse_engine.config.config import BUDGET, MOVABLE, Config
from sparse_engine.config.flags import parse_flags, run_command
from sparse_engine.config.values import read_config_file
from sparse_engine.errors import InputError
from sparse_engine.installed import require
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.run_folder import RunFolder

NEEDS = ("training", "tqdm")


def main(arguments: Sequence[str]) -> None:
    """Run the command line `arguments`."""
    flags = parse_flags(arguments, (__doc__ or "").splitlines()[0], _decided)
    if "resume" in flags:
        _resume(flags)
        return
    config = _decided(flags)
    if config.print_config:
        print(json.dumps(config.saved(), indent=2))
        return
    require(*NEEDS)
    # From here on torch is needed; its import takes longer than everything above.
    if config.dry_run:
        from sparse_engine.training.dry_run import dry_run

        dry_run(config)
    else:
        from sparse_engine.training import run

        run.train(config)


def _decided(flags: dict[str, Any]) -> Config:
    """Return the configuration of flags, and of the file that they may name, resolved."""
    file = read_config_file(flags["config"]) if "config" in flags else {}
    if file.get("densities") and set(BUDGET) & set(flags):
        # Another budget: densities are decided anew, and with them the sparsity.
        file = {k: v for k, v in file.items() if k not in ("densities", "sparsity")}
    return resolve(Config(**{**file, **flags}))


def _resume(flags: dict[str, Any]) -> None:
    folder = RunFolder.existing(flags["resume"])
    saved = folder.config()
    given = {k: v for k, v in flags.items() if k != "config"}
    if "config" in flags:
        given = {**read_config_file(flags["config"]), **given}
    for name, value in given.items():
        if name not in MOVABLE and value != getattr(saved, name):
            raise InputError(
                f"run '{folder.path}' has {name} {getattr(saved, name)}, found {value}: "
                "a resumed run keeps its configuration; start a new one with --config"
            )
    finished = folder.result()
    if finished is not None:
        from sparse_engine.training.result import print_json

        print(f"run '{folder.path}' is finished")
        print_json(finished)
        return
    require(*NEEDS)
    from sparse_engine.training import run

    moved = {k: v for k, v in given.items() if k in MOVABLE and k != "resume"}
    run.train(resolve(replace(saved, **moved)), folder)


if __name__ == "__main__":
    run_command(main)
