"""The native path, whatever `auto` would take, in one thread and in several."""

import pytest
import torch

from sparse_kernels.dispatch.backend import VARIABLE


@pytest.fixture(autouse=True)
def path(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setenv(VARIABLE, "native")


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def number_of_threads(request):
    """Run a test in as many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
