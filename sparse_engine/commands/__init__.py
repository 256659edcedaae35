"""Commands that are no module of their own name: what `sparse-engine NAME` runs besides."""
