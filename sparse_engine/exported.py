"""Tickets that `python -m sparse_engine.export` has written, as networks."""

from sparse_engine.runs.exported import load_safetensors, load_torch_export, save_safetensors

__all__ = ["load_safetensors", "load_torch_export", "save_safetensors"]
