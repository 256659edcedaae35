"""The makers' own measurements."""
