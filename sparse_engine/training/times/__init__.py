"""Seconds measured on this machine: what a step takes, budgets of time, kernels tuned."""
