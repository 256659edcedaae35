"""The settings of a run: declared once, read from flags and from files."""
