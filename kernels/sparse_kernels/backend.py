"""Which implementation runs: `auto`, or what the environment asks for."""

import os

import torch

VARIABLE = "SPARSE_ENGINE_BACKEND"
BACKENDS = ("auto", "triton", "gemm", "masked")


class BackendError(RuntimeError):
    """The backend asked for cannot run here."""


def check_backend(name: str, device: torch.device) -> None:
    """Raise BackendError, in one line, unless backend `name` can run on `device`."""
    if name not in BACKENDS:
        raise BackendError(f"backend '{name}' is unknown; choose from {', '.join(BACKENDS)}")
    if name == "triton" and device.type != "cuda":
        raise BackendError(
            f"backend 'triton' needs a CUDA GPU, found device '{device.type}'; "
            "use --backend auto or masked"
        )
    if name in ("triton", "gemm"):
        raise BackendError(f"backend '{name}' is not part of this version; use auto or masked")


def require_backend(device: torch.device) -> None:
    """Check the backend that the environment variable SPARSE_ENGINE_BACKEND names."""
    check_backend(os.environ.get(VARIABLE, "auto"), device)
