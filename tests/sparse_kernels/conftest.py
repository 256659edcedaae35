"""How the kernels are run in tests: interpreted where there is no GPU, on outputs that are NaN."""

import pytest
import torch
from kernel_cases import DEVICE, use_small_tiles


@pytest.fixture
def poisoned_kernels(triton_backend, monkeypatch):
    """Run the kernels, with outputs that start as NaN, and in the interpreter with small tiles."""
    torch.use_deterministic_algorithms(True)  # torch.empty then holds NaN
    if DEVICE == "cpu":
        use_small_tiles(monkeypatch)
    yield
    torch.use_deterministic_algorithms(False)
