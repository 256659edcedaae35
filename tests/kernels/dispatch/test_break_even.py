"""Dense layers run dense: the break-even table and its place in the choice of a backend."""

import pytest
import torch

from sparse_kernels.dispatch import backend
from sparse_kernels.dispatch.cost_model import BREAK_EVEN, break_even_density

GPU = torch.device("cuda", 0)


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(backend, "_too_old", lambda device: False)
    monkeypatch.setattr(backend, "_generation", lambda device: 90)


def choice(density: float, block=(64, 64)) -> str:
    return backend.choose_backend(GPU, torch.bfloat16, (640, 640, 3, 3, *block), density)


@pytest.mark.parametrize("block", [(32, 32), (64, 64), (128, 64)])
def test_a_layer_above_break_even_runs_dense(block, hopper):
    limit = break_even_density(90, block)
    assert choice(limit, block) == "triton"
    assert choice(limit + 0.01, block) == "masked"


def test_the_kernels_run_at_any_density_where_they_are_asked_for(hopper, monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, "triton")
    assert choice(1.0) == "triton"


def test_wider_blocks_break_even_at_higher_densities():
    for arch, row in BREAK_EVEN.items():
        assert list(row.values()) == sorted(row.values())
        assert break_even_density(arch, (128, 32)) == row[32]
        assert break_even_density(arch, (48, 48)) == row[32]
    assert break_even_density(120, (64, 64)) == BREAK_EVEN[90][64]
    assert break_even_density(89, (64, 64)) == BREAK_EVEN[80][64]
