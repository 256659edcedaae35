"""Tables as text and as Markdown."""

from sparse_engine.tables import format_table, markdown_table

ROWS = [["name", "a"], ["x", "1.25"], ["longer", ""]]


def test_a_table_is_aligned_text():
    assert format_table(ROWS, left=1).splitlines() == ["name       a", "x       1.25", "longer"]
    assert format_table(ROWS).splitlines() == ["name    a", "x       1.25", "longer"]


def test_a_table_is_aligned_markdown():
    assert markdown_table(ROWS).splitlines() == [
        "| name   |    a |",
        "| ------ | ---: |",
        "| x      | 1.25 |",
        "| longer |      |",
    ]
