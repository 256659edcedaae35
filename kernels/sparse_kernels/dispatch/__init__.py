"""Which implementation computes a layer."""
