"""The table of tools that were tried on sparse layers: `python docs/tools.py`.

Runs a small program for each tool (extra `integration`; a tool that is not installed is a row that
says so) and writes the table into your_own_loop.md. `--check` compares instead, versions left out,
and exits with 1 where a row says something else; it starts no processes. A new row: a function
with @tool in tools_of_torch.py, tools_of_functions.py, tools_of_loops.py or
tools_of_others.py.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "your_own_loop.md"
BEGIN, END = "<!-- tools -->", "<!-- end of tools -->"
HEADINGS = ("tool", "version", "what was tried", "what holds")
NOT_RUN = ("not installed", "needs processes")


def main() -> None:
    """Write the table, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    rows = run(not check)
    for row in rows:
        print(" | ".join(row), flush=True)
    failed = [row for row in rows if row[-1].startswith("FAILS")]
    if check:
        told = {row[0]: row for row in table(PAGE.read_text(encoding="utf-8"))}
        failed += [row for row in rows if not agree(row, told.pop(row[0], None))]
        failed += told.values()
    else:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        lines = [HEADINGS, ("---",) * len(HEADINGS), *rows]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    if failed:
        sys.exit("\n".join(f"differs: {' | '.join(row)}" for row in failed))


def run(with_processes: bool) -> list[tuple[str, ...]]:
    """Run all programs, on one thread; return the cells of their rows."""
    import tools_of_functions  # noqa: F401
    import tools_of_loops  # noqa: F401
    import tools_of_others
    import tools_of_torch  # noqa: F401
    import torch
    from tool_rows import TOOLS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the tools themselves
    others = [t for t in TOOLS if t.program.__module__ == tools_of_others.__name__]
    return [
        (tool.name, "-", tool.tried, NOT_RUN[1])
        if tool.starts_processes and not with_processes
        else tool.cells()
        for tool in [*(tool for tool in TOOLS if tool not in others), *others]
    ]


def table(text: str) -> list[tuple[str, ...]]:
    """Return the rows of the table in a page."""
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines[2:]]


def agree(row: tuple[str, ...], told: tuple[str, ...] | None) -> bool:
    """Return whether a row says what the page does, as far as the tool is installed."""
    if told is None:
        return False
    end = 3 if {row[-1], told[-1]} & {*NOT_RUN} else 4
    return (row[0], *row[2:end]) == (told[0], *told[2:end])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # in processes that programs start
    main()
