"""Products of blocks on a CPU."""
