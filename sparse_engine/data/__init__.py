"""Data sets: a table of names, readers of files, and loaders that keep the step busy."""
