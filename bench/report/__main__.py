"""Tables and figures of everything in the reports' CSVs, and the README's first table.

    python -m bench.report                          reads and writes bench/reports, and README.md
    python -m bench.report --reports DIR --print    only prints, for rows brought from elsewhere

Figures need matplotlib (extra `plots`); without it there are none, and it says so.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from bench.report import tables
from bench.report.figures import draw_all
from bench.report.records import REHEARSAL, REPORTS, Row, file_name, read_all
from bench.report.tables import latest, sections, speed_table
from sparse_engine.errors import InputError

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- speed table -->", "<!-- end of speed table -->"


def readme_block(rows: list[Row]) -> str:
    """Return what stands in the README from one mark to the other."""
    return f"{BEGIN}\n\n{speed_table(rows)}\n\n{END}"


def with_block(text: str, block: str) -> str:
    """Return a README with another block between the marks.

    Raises:
        InputError: it has no marks.
    """
    return tables.with_block(text, (BEGIN, END), block, "README.md", "its speed table")


def measured(rows: list[Row]) -> list[Row]:
    """Return rows as they are.

    Raises:
        InputError: some come from a rehearsal.
    """
    if any(row["device"] == REHEARSAL for row in rows):
        raise InputError(
            f"rows of device '{REHEARSAL}' were not measured, and there is no report on them; "
            "move their CSV away"
        )
    return rows


def by_device(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each device."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["device"], []).append(row)
    return found


def document(rows: list[Row]) -> str:
    """Return all tables: a chapter for each device, with what its figures are quoted with."""
    parts = [
        "# Reports",
        "Written by `python -m bench.report` from the CSVs beside it: the last row of each thing "
        "measured. `/ dense` is the median over the best dense contender's median of the same run; "
        "in brackets the 20th and 80th percentile of the rounds' ratios, where contenders took "
        'turns. `runs`: "sparse" if 80 % or more of the sparse FLOPs ran on triton or gemm. A '
        "contender whose check failed has no row.",
    ]
    for device, own in by_device(rows).items():
        facts = sorted({_quoted(row) for row in own})
        pictures = [
            f"![{name}]({_slug(device)}-{name}.png)"
            for name in ("speedup", "breakdown", "memory")
            if any(row["report"] == "training" for row in own)
        ]
        parts += [f"## {device}", *facts, sections(own), *pictures]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    """Read all, print or write all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reports", type=Path, default=REPORTS, help="folder of the CSVs")
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    options = parser.parse_args()
    try:
        rows = measured(read_all(options.reports))
        text, readme = document(latest(rows)), README.read_text(encoding="utf-8")
        changed = with_block(readme, readme_block(rows))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    if options.print:
        print(text)
        return
    (options.reports / "README.md").write_text(text, encoding="utf-8")
    if options.reports.resolve() == REPORTS.resolve():
        README.write_text(changed, encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("no figures: they need matplotlib, pip install -e '.[plots]'")
        return
    for device, own in by_device(latest(rows)).items():
        for path in draw_all(own, options.reports, _slug(device)):
            print(path)


def _slug(device: str) -> str:
    return file_name(device, "").removesuffix("-.csv")


def _quoted(row: Row) -> str:
    return (
        f"Driver {row['driver']}, torch {row['torch']}, triton {row['triton']}, {row['dtype']}, "
        f"{row['threads']} CPU thread{'s' * (row['threads'] != '1')}, commit {row['commit']}, "
        f"{row['run']}."
    )


if __name__ == "__main__":
    main()
