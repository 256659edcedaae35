"""Both paths of a CPU, and memory that shows what nobody has written."""

import pytest
import torch

from sparse_kernels.dispatch.backend import VARIABLE


@pytest.fixture(params=["masked", "native"])
def both_paths(request, monkeypatch):
    """Run a test on both paths."""
    monkeypatch.setenv(VARIABLE, request.param)


@pytest.fixture
def poisoned():
    """Let torch.empty hold NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
