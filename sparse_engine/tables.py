"""Rows of cells as aligned text or as a Markdown table. Imports no torch."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def format_table(rows: Rows, left: int = 2) -> str:
    """Return rows as aligned columns: the first `left` to the left, the rest to the right."""
    return "\n".join("  ".join(cells).rstrip() for cells in _aligned(rows, left))


def markdown_table(rows: Rows) -> str:
    """Return rows, the heading first, as a Markdown table that is aligned as text too."""
    heading, *body = rows
    padded = _aligned([heading, ["---"] * len(heading), *body], 1)
    rule = ["-" * len(cell) for cell in padded[1]]
    padded[1] = [rule[0], *(dashes[:-1] + ":" for dashes in rule[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def _aligned(rows: Rows, left: int) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        for row in rows
    ]
