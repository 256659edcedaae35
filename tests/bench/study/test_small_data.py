"""A small set is cut whole or not at all, its pixels are means."""

import numpy as np
import pytest
from study_files import digits

from bench.study.small_data import averaged, cut
from sparse_engine.errors import InputError


def test_a_small_set_is_averaged_and_whole_or_not_there(tmp_path):
    images = np.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8).astype(np.uint8)
    assert averaged(images, 4)[1, 2, 0, 3] == images[1, 2, 0:2, 6:8].astype(float).mean().round()
    with pytest.raises(InputError, match="cannot be averaged to 3"):
        averaged(images, 3)
    digits(tmp_path)
    with pytest.raises(InputError, match="has 60 test images, not 100"):
        cut(tmp_path / "digits.npz", tmp_path / "x" / "small.npz", (10, 100), None)
    assert not (tmp_path / "x").exists()
    cut(tmp_path / "digits.npz", tmp_path / "x" / "small.npz", (10, None), 4)
    with np.load(tmp_path / "x" / "small.npz") as small:
        assert small["train_images"].shape == (10, 1, 4, 4)
        assert small["test_labels"].tolist() == [n % 10 for n in range(60)]
