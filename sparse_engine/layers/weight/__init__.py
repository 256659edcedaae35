"""A layer's dense weight, as other code reads it and writes to it."""
