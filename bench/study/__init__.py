"""Accuracy against block size, seed by seed: a grid of training runs."""
