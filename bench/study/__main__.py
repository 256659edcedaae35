"""Make the runs of a study, one row each in its CSV, and write its tables and figure.

    python -m bench.study bench/studies/NAME.json --data-dir DIR     make what has no row yet
    python -m bench.study bench/studies/NAME.json --data-dir DIR --time     time its networks' steps
    python -m bench.study bench/studies/NAME.json --write docs/blocks.md
    python -m bench.study bench/studies/NAME.json --write-plan       rows of sparse-engine plan
    python -m bench.study bench/studies/NAME.json --dry-run          say which runs there are

What a file holds: see grid.py. The CSVs lie beside it. A study can be stopped at any time, by
Ctrl-C or --budget, and goes on with the same command.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.study.grid import Study, read_study
from bench.study.small_data import cut
from sparse_engine.config.flags import run_command, user_path, user_path_text
from sparse_engine.errors import InputError, RunFailure
from sparse_engine.planning.rows import PACKAGED


def main(arguments: Sequence[str]) -> None:
    """Read the study, then make runs, or time them, or write what there is."""
    options = _parser().parse_args(arguments)
    budget = 1.0 if options.budget is None else options.budget
    if not budget > 0 or min(options.processes, options.threads) < 1:
        raise InputError("--budget, --processes and --threads must be above 0")
    study = read_study(options.study)
    path = options.table or options.study.with_suffix(".csv")
    times = path.with_name(f"{path.stem}-times.csv")
    from bench.study.runs import Runner, Table

    table = Table(path)
    if options.dry_run:
        for grid in study.grids:
            print(f"{grid.name}:")
            for run in grid.runs:
                print(f"  {run}: {'done' if run.key in table.rows else 'to do'}")
        return
    if options.write:
        from bench.study.table import write

        return write(study, table.rows, times, options.write)
    if options.write_plan:
        from bench.study.plan_rows import write_plan

        return write_plan(study, table.rows, options.write_plan)
    out = options.out or Path("runs") / "studies" / study.name
    folder = _data_folder(study, options.data_dir, out)
    if options.time:
        from bench.study.times import time_study

        return time_study(study, times, folder, options.threads)
    runner = Runner(study, table, out, folder, options.device, options.threads, options.keep)
    runner.run(options.processes, options.budget)
    if runner.failed:
        raise RunFailure(
            f"{len(runner.failed)} runs failed, see {out}/{runner.failed[0]}.log; the same command "
            "tries them again"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.study", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("study", type=user_path, help="JSON file")
    parser.add_argument("--data-dir", type=user_path_text, help="folder of the data set")
    parser.add_argument("--table", type=user_path, help="CSV of the rows [beside the study]")
    parser.add_argument("--out", type=user_path, help="folder of the runs [runs/studies/NAME]")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--budget", type=float, help="seconds, after which it stops")
    parser.add_argument("--keep", action="store_true", help="keep checkpoints and tickets")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and make none")
    parser.add_argument("--time", action="store_true", help="time steps, in turn with dense ones")
    parser.add_argument("--write", type=user_path, help="Markdown file whose tables are replaced")
    parser.add_argument(
        "--write-plan", type=user_path, nargs="?", const=PACKAGED, metavar="CSV",
        help="write what sparse-engine plan goes by, into the package unless a file is named",
    )  # fmt: skip
    return parser


def _data_folder(study: Study, data_dir: str | None, out: Path) -> str | None:
    """Return the folder in which the trainer finds the study's data, which are cut if need be."""
    if study.data.whole:
        return data_dir
    folder = out / "data"
    for data in dict.fromkeys((study.data, study.foreign)):
        target = folder / f"{data.name}.npz"
        if not target.exists():
            if data_dir is None:
                raise InputError(f"--data-dir is missing: the folder with {data.dataset}.npz")
            source = Path(data_dir) / f"{data.dataset}.npz"
            cut(source, target, (data.train, data.test), data.pixels)
    return str(folder)


if __name__ == "__main__":
    run_command(main)
