"""The gemm path, whatever `auto` would take, in one thread and in several."""

import pytest
import torch

from sparse_kernels.cpu import threads
from sparse_kernels.dispatch.backend import VARIABLE


@pytest.fixture(autouse=True)
def path(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setenv(VARIABLE, "gemm")


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def number_of_threads(request, monkeypatch):
    """Share even the smallest work."""
    monkeypatch.setattr(threads, "LEAST_ROWS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
