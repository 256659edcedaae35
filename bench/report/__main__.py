"""Tables and figures of everything in the reports' CSVs, and the README's first table.

    python -m bench.report                          reads and writes bench/reports, and README.md
    python -m bench.report --reports DIR --print    only prints, for rows brought from elsewhere

Figures need matplotlib (extra `plots`); without it there are none, and it says so.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from bench.report.figures import draw_all
from bench.report.records import REHEARSAL, REPORTS, Row, file_name, read_all
from bench.report.tables import latest, machine, sections, speed_table, with_block
from sparse_engine.config.flags import Parser, run_command, user_path
from sparse_engine.errors import InputError

README = Path(__file__).parents[2] / "README.md"


def by_machine(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each device, a CPU with so many threads."""
    machines = dict.fromkeys(map(machine, rows))
    return {name: [row for row in rows if machine(row) == name] for name in machines}


def document(rows: list[Row]) -> str:
    """Return all tables: a chapter for each device, with what its figures are quoted with."""
    parts = [
        "# Reports",
        "Written by `python -m bench.report` from the CSVs beside it: the last row of each thing "
        "measured. `/ dense` is the median over the best dense variant's median of the same run "
        "(on a CPU the best in fp32); in brackets the 20th and 80th percentile of the rounds' "
        "ratios, where variants took "
        'turns. `runs`: "sparse" if 80 % or more of the sparse FLOPs ran on triton or native. A '
        "variant whose check failed has no row. `products`: convolution and linear layers, forward "
        "and backward; `not in products`: the share of a step that they leave.",
    ]
    for name, own in by_machine(rows).items():
        facts = sorted({_quoted(row) for row in own})
        pictures = [
            f"![{picture}]({_slug(own)}-{picture}.png)"
            for picture in ("speedup", "breakdown", "memory")
            if any(row["report"] == "training" for row in own)
        ]
        parts += [f"## {name}", *facts, sections(own), *pictures]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Read all, print or write all."""
    parser = Parser(prog="python -m bench.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reports", type=user_path, default=REPORTS, help="folder of the CSVs")
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    options = parser.parse_strictly(arguments)
    rows = read_all(options.reports)
    if any(row["device"] == REHEARSAL for row in rows):
        raise InputError(
            f"rows of device '{REHEARSAL}' were not measured, and there is no report on them; "
            "move their CSV away"
        )
    text, readme = document(latest(rows)), README.read_text(encoding="utf-8")
    readme = with_block(readme, "speed table", speed_table(rows), "README.md")
    if options.print:
        return print(text)
    (options.reports / "README.md").write_text(text, encoding="utf-8")
    if options.reports.resolve() == REPORTS.resolve():
        README.write_text(readme, encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        return print("no figures: they need matplotlib, pip install -e '.[plots]'")
    for own in by_machine(latest(rows)).values():
        for path in draw_all(own, options.reports, _slug(own)):
            print(path)


def _slug(rows: list[Row]) -> str:
    """Return what the figures of one machine's rows begin with."""
    name = file_name(rows[0]["device"], "").removesuffix("-.csv")
    threads = rows[0]["threads"]
    return name if name != "cpu" or threads == "1" else f"{name}-{threads}-threads"


def _quoted(row: Row) -> str:
    return (
        f"Driver {row['driver']}, torch {row['torch']}, triton {row['triton']}, {row['dtype']}, "
        f"{row['threads']} CPU thread{'s' * (row['threads'] != '1')}, commit {row['commit']}, "
        f"{row['run']}."
    )


if __name__ == "__main__":
    run_command(main)
