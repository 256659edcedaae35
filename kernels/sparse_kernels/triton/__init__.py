"""Kernels for GPUs, in Triton, and what launches them."""
