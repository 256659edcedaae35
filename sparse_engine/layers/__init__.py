"""Sparse layers and the surgery that puts them into a network."""
