"""Evaluate any set of runs as one ensemble: sparse-engine evaluate RUN...

Prints Markdown tables of all tickets and of their ensemble: the test split, corrupted, foreign and
attacked images where flags ask for them, and what training cost; and one JSON line last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_engine.config.config import Config
from sparse_engine.config.flags import Parser, run_command, user_path_text
from sparse_engine.data.catalog import first_difference, npz_path
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.evaluation.robustness.options import Options, add_flags, read_options
from sparse_engine.evaluation.tables import report_tables, total_costs
from sparse_engine.installed import require
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.files import save_json
from sparse_engine.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sparse_engine.data.arrays import DataSet
    from sparse_engine.data.catalog import DatasetInfo
    from sparse_engine.runs.tickets import Ticket


def main(arguments: Sequence[str]) -> None:
    """Run the command line `arguments`."""
    parser = Parser(
        prog="sparse-engine evaluate",
        usage="%(prog)s RUN... [flags]",
        description=(__doc__ or "").partition(":")[0] + ".",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=user_path_text, metavar="RUN", help="run folders")
    parser.add_argument(
        "--data-dir", type=user_path_text, help="folder with the data [that of the first run]"
    )
    parser.add_argument(
        "--test",
        type=user_path_text,
        metavar="NAME|FILE",
        help="another test set, in the runs' normalisation and classes: a data set's name, an .npz "
        "file, or a folder with a folder of images for each class [the data set's own]",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]"
    )
    add_flags(parser)
    flags = parser.parse_strictly(arguments)
    options = read_options(flags)
    with parser.naming_own_flags():
        result = evaluate(flags.runs, flags.data_dir, flags.device, options, flags.test)
    # Late, like everything that needs torch.
    from sparse_engine.training.result import print_json
    from sparse_kernels.timing import disturbance

    print(report_tables(result))
    if disturbed := disturbance(result.get("test_core_wait", 0.0)):
        print(f"\ntest time: {disturbed}")
    print_json(result)
    # Last, since what is printed cannot be lost to a full disk.
    _write_files(result, options)


def evaluate(
    runs: Sequence[str],
    data_dir: str | None,
    device: str,
    options: Options | None = None,
    test: str | None = None,
) -> dict[str, Any]:
    """Return what is to be known of the tickets of all runs, as one ensemble.

    Args:
        runs: their folders.
        data_dir: the folder with the data; None: that of the first run.
        device: where to compute.
        options: what else to evaluate.
        test: another test set, see data/test_set.py; None: that of the runs' data set.

    Returns:
        evaluation.ensemble_metrics; name, size and classes of the test set; `calibration`, the
        bins of the ensemble's reliability diagram; `costs` of all runs together; test_times;
        robustness.assess as the options ask for it; and if figures are wanted `densities` of each
        member's layers, `member_runs` (names of folders), `dense_members` (which are of --method
        dense), and `subsets` of the others, or of all where all are dense (see subset_metrics).

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
    from sparse_engine.device import choose_device
    from sparse_engine.evaluation.predict import (
        calibration,
        ensemble_metrics,
        member_log_probabilities,
    )
    from sparse_engine.evaluation.test_times import test_times
    from sparse_engine.runs.tickets import run_tickets

    data, infos = _data_of(folders, saved, configs[0].data_dir, test)
    place = choose_device(configs[0])
    tickets = [
        ticket
        for folder, config, info in zip(folders, configs, infos)
        for ticket in run_tickets(folder, config, info)
    ]
    beyond = _beyond_the_test_split(tickets, data, place, options)
    predicted = [member_log_probabilities([ticket], data.test, place) for ticket in tickets]
    members, labels = [m for found, _ in predicted for m in found], predicted[0][1]
    if options.plots:
        owners = [ticket for ticket, (found, _) in zip(tickets, predicted) for _ in found]
        beyond |= _for_figures(owners, members, labels)
    return {
        "dataset": dataset,
        "runs": list(runs),
        "test_set": test or dataset,
        "test_images": len(data.test),
        "class_names": list(data.info.class_names) or None,
        **ensemble_metrics(members, labels),
        "calibration": calibration(members, labels),
        "costs": total_costs([folder.result() for folder in folders]),
        **(test_times(tickets, place) if options.compare else {}),
        **beyond,
    }


def _for_figures(
    owners: Sequence[Ticket], members: Sequence[Tensor], labels: Tensor
) -> dict[str, Any]:
    """Return what only figures show of members, each of which is of a ticket: see evaluate."""
    from sparse_engine.evaluation.predict import subset_metrics

    dense = [ticket.config.method == "dense" for ticket in owners]
    sparse = [member for member, is_dense in zip(members, dense) if not is_dense]
    return {
        "member_runs": [ticket.path.parent.resolve().name for ticket in owners],
        "dense_members": dense,
        "subsets": subset_metrics(sparse or members, labels),
    }


def _beyond_the_test_split(
    tickets: Sequence[Ticket], data: DataSet, place: torch.device, options: Options
) -> dict[str, Any]:
    """Return what needs the tickets as models: assess, and densities for figures."""
    if not (options.severities or options.foreign or options.attacks or options.plots):
        return {}
    require("all but the test split", "PIL", "torchvision", "tqdm")
    from sparse_engine.evaluation.robustness.assess import assess
    from sparse_engine.evaluation.robustness.pixel_model import pixel_models
    from sparse_engine.layers.report import report

    models, first = pixel_models(tickets, place), tickets[0].config
    result = assess(models, data, first.data_dir, options, 2 * first.batch_size, first.workers)
    if options.plots:
        reports = [report(model.model) for model in models]
        result["densities"] = [{row.name: row.density for row in r.rows} for r in reports]
    return result


def _common_dataset(folders: Sequence[RunFolder], saved: Sequence[Config], options: Options) -> str:
    """Return the data set of all runs, which no foreign one may be."""
    dataset = saved[0].dataset
    for folder, config in zip(folders, saved):
        if config.dataset != dataset:
            raise InputError(
                f"run '{folder.path}' is of data set {config.dataset}, and "
                f"'{folders[0].path}' of {dataset}: evaluate them apart"
            )
    if dataset in options.foreign:
        raise InputError(f"--ood {dataset} is the data set of the runs; name another, or noise")
    return dataset


def _data_of(
    folders: Sequence[RunFolder], saved: Sequence[Config], data_dir: str | None, test: str | None
) -> tuple[DataSet, list[DatasetInfo]]:
    """Return the data to evaluate on, and what each run knows of its own, as it prepares images.

    Raises:
        InputError: data that cannot be read, or runs of other images or classes.
    """
    from sparse_engine.data.load import dataset_info, load_dataset
    from sparse_engine.data.test_set import load_test_set

    if test is None:
        data = load_dataset(saved[0].dataset, data_dir)
        infos = [config.preparation.applied(data.info) for config in saved]
        for folder, config, info in zip(folders, saved, infos):
            _check_training_data(folder, config, info, data_dir)
        data = replace(data, info=infos[0])
    else:
        infos = [
            folder.info() or dataset_info(config.dataset, data_dir, config.preparation)
            for folder, config in zip(folders, saved)
        ]
        data = load_test_set(test, data_dir, infos[0])
        # By its own name, files of the data set's corrupted images are not those of another.
        data = replace(data, info=replace(infos[0], name=test))
    _check_same_images(folders, infos)
    return data, infos


def _check_same_images(folders: Sequence[RunFolder], infos: Sequence[DatasetInfo]) -> None:
    """Raise InputError unless all runs take images of one size, of the same classes."""
    for folder, info in zip(folders, infos):
        first = replace(infos[0], mean=info.mean, std=info.std)  # each normalises by itself
        difference = first_difference(info, first)
        if difference:
            words, own, expected = difference
            raise InputError(
                f"run '{folder.path}' and '{folders[0].path}' cannot be one ensemble: {words} is "
                f"{own} in one and {expected} in the other; evaluate them apart"
            )


def _check_training_data(
    folder: RunFolder, config: Config, info: DatasetInfo, data_dir: str | None
) -> None:
    """Raise InputError if a run was trained on data of the same name and another kind.

    The classes and the normalisation of a user's own data are those of its files, of which there
    may be several. Runs of earlier versions do not hold them: theirs are asked, if they are there.
    """
    from sparse_engine.data.load import dataset_info

    path, own = npz_path(config.dataset, config.data_dir), folder.info()
    if own is None and path and path.parent.resolve() != Path(data_dir or "").resolve():
        own = dataset_info(config.dataset, config.data_dir, config.preparation)
    difference = own and first_difference(own, info)
    if difference:
        words, own, here = difference
        raise InputError(
            f"run '{folder.path}' was trained on {path or config.dataset}, whose {words} is {own}, "
            f"and the data here has {here}: evaluate it apart, on its own data"
        )


def _write_files(result: dict[str, Any], options: Options) -> None:
    try:
        if options.out:
            save_json(result, options.out)
        if options.plots:
            from sparse_engine.evaluation.plots import draw_all

            draw_all(result, options.plots)
    except (OSError, InputError, RunFailure) as error:
        raise RunFailure(f"{error}; the JSON line holds everything") from None


if __name__ == "__main__":
    run_command(main)
