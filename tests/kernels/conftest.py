"""What tests of the kernels share."""

import pytest
from kernel_cases import DEVICE, use_small_tiles

from sparse_kernels.measurements import FOLDER
from sparse_kernels.triton.tile_choice import tuned_tiles


@pytest.fixture
def empty_cache(triton_backend, monkeypatch, tmp_path):
    """Small tiles in the interpreter, and no tuned ones on disk or in this process."""
    if DEVICE == "cpu":
        use_small_tiles(monkeypatch)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    tuned_tiles.cache_clear()
    yield
    tuned_tiles.cache_clear()
