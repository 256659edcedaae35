"""Evaluate any set of runs as one ensemble: python -m sparse_engine.evaluate RUN...

Prints Markdown tables of all tickets and of their ensemble: the test split, corrupted, foreign and
attacked images where flags ask for them, and what training cost; and one JSON line last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparse_engine.command_line import Parser, run_command
from sparse_engine.config import Config
from sparse_engine.data.catalog import npz_path
from sparse_engine.errors import InputError
from sparse_engine.evaluation_report import report_tables, total_costs
from sparse_engine.recipes import resolve
from sparse_engine.robustness.options import Options, add_flags, read_options
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
    add_flags(parser)
    flags = parser.parse_strictly(arguments)
    options = read_options(flags)
    result = evaluate(flags.runs, flags.data_dir, flags.device, options)
    from sparse_engine.job import print_json  # late, like everything that needs torch

    print(report_tables(result))
    if options.out:
        _write_new(options.out, result)
    print_json(result)


def evaluate(
    runs: Sequence[str], data_dir: str | None, device: str, options: Options | None = None
) -> dict[str, Any]:
    """Return what is to be known of the tickets of all runs, as one ensemble.

    Returns:
        evaluation.ensemble_metrics; `calibration`, the bins of the ensemble's reliability diagram;
        `costs` of all runs together; and robustness.assess as the options ask for it. Figures are
        drawn if the options name a folder for them.

    Raises:
        InputError: a run that cannot be read, or runs that cannot be one ensemble.
    """
    options = options or Options()
    folders = [RunFolder.existing(run) for run in runs]
    saved = [folder.config() for folder in folders]
    dataset = _common_dataset(folders, saved, options)
    # All runs are given the same data, and the backend that this machine has.
    here = {"data_dir": data_dir or saved[0].data_dir, "device": device, "backend": "auto"}
    configs = [resolve(replace(config, **here)) for config in saved]
    from sparse_engine.data.load import load_dataset
    from sparse_engine.evaluation import calibration, ensemble_metrics
    from sparse_engine.job import choose_device, member_probabilities
    from sparse_engine.robustness.assess import assess
    from sparse_engine.robustness.members import load_models

    data = load_dataset(dataset, configs[0].data_dir)
    _check_training_data(folders, saved, data.info, configs[0].data_dir)
    place = choose_device(configs[0])
    models = []
    if options.severities or options.foreign or options.attacks or options.plots:
        for folder, config in zip(folders, configs):
            models += load_models(config, data.info, folder, place)
    size, workers = 2 * configs[0].batch_size, configs[0].workers
    found = assess(models, data, configs[0].data_dir, options, size, workers)
    members, labels = [], None
    for folder, config in zip(folders, configs):
        probabilities, labels = member_probabilities(config, data, folder, place)
        members += probabilities
    result = {
        "dataset": dataset,
        "runs": list(runs),
        **ensemble_metrics(members, labels),
        "calibration": calibration(members, labels),
        "costs": total_costs([folder.result() for folder in folders]),
        **found,
    }
    if options.plots:
        from sparse_engine.plots import draw_all

        draw_all(result, models, folders, options.plots)
    return result


def _common_dataset(folders: Sequence[RunFolder], saved: Sequence[Config], options: Options) -> str:
    """Return the data set of all runs, which no foreign one may be."""
    dataset = saved[0].dataset
    for folder, config in zip(folders, saved):
        if config.dataset != dataset:
            raise InputError(
                f"run '{folder.path}' is of data set {config.dataset}, and "
                f"'{folders[0].path}' of {dataset}: they cannot be one ensemble"
            )
    if dataset in options.foreign:
        raise InputError(f"--ood {dataset} is the data set of the runs; name another, or noise")
    return dataset


def _check_training_data(
    folders: Sequence[RunFolder], saved: Sequence[Config], info: Any, data_dir: str | None
) -> None:
    """Raise InputError if a run was trained on arrays of the same name and another kind.

    The classes and the normalisation of a user's own arrays are those of their file, of which
    there may be several; one that is gone cannot be compared.
    """
    from sparse_engine.data.catalog import dataset_info

    for folder, config in zip(folders, saved):
        path = npz_path(config.dataset, config.data_dir)
        if path is None or path.parent.resolve() == Path(data_dir or "").resolve():
            continue
        own = dataset_info(config.dataset, config.data_dir)
        for name, words in (
            ("classes", "number of classes"),
            ("channels", "number of channels"),
            ("height", "image height"),
            ("width", "image width"),
            ("mean", "normalisation (mean)"),
            ("std", "normalisation (deviation)"),
        ):
            if getattr(own, name) != getattr(info, name):
                raise InputError(
                    f"run '{folder.path}' was trained on {path}, whose {words} is "
                    f"{getattr(own, name)}, and the data here has {getattr(info, name)}: "
                    "evaluate it apart, on its own data"
                )


def _write_new(path: Path, result: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    run_command(main)
