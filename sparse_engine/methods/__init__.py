"""Training methods, each a short file that returns a list of phases."""
