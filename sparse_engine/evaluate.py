"""Evaluate any set of runs as one ensemble: python -m sparse_engine.evaluate RUN...

Prints a table of all tickets and of their ensemble on the test split, and one JSON line last.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sparse_engine.command_line import Parser, run_command
from sparse_engine.errors import InputError
from sparse_engine.recipes import resolve
from sparse_engine.run_folder import RunFolder


def main(arguments: Sequence[str]) -> None:
    """Run the command line `arguments`."""
    parser = Parser(
        prog="python -m sparse_engine.evaluate",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--data-dir", help="folder with the data [that of the first run]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_strictly(arguments)
    result = evaluate(options.runs, options.data_dir, options.device)
    # Imported late, like everything that needs torch.
    from sparse_engine.evaluation import metrics_table
    from sparse_engine.job import print_json

    print(metrics_table(result))
    print_json(result)


def evaluate(runs: Sequence[str], data_dir: str | None, device: str) -> dict[str, Any]:
    """Return ensemble_metrics over the tickets of all runs.

    Raises:
        InputError: a run that cannot be read, or runs of different data sets.
    """
    folders = [RunFolder.existing(run) for run in runs]
    saved = [folder.config() for folder in folders]
    for folder, config in zip(folders, saved):
        if config.dataset != saved[0].dataset:
            raise InputError(
                f"run '{folder.path}' is of data set {config.dataset}, and "
                f"'{folders[0].path}' of {saved[0].dataset}: they cannot be one ensemble"
            )
    # All runs are given the same data, and the backend that this machine has.
    here = {"data_dir": data_dir or saved[0].data_dir, "device": device, "backend": "auto"}
    configs = [resolve(replace(config, **here)) for config in saved]
    from sparse_engine.data.load import load_dataset
    from sparse_engine.evaluation import ensemble_metrics
    from sparse_engine.job import choose_device, member_probabilities

    data = load_dataset(configs[0].dataset, configs[0].data_dir)
    members, labels = [], None
    for folder, config in zip(folders, configs):
        found, labels = member_probabilities(config, data, folder, choose_device(config))
        members += found
    result = ensemble_metrics(members, labels)
    return {"dataset": configs[0].dataset, "runs": list(runs), **result}


if __name__ == "__main__":
    run_command(main)
