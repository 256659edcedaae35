"""When a layer runs on kernels: the table of break-even, and the fitted times."""

import pytest
import torch

from sparse_kernels.dispatch.cost_model import (
    BREAK_EVEN,
    break_even_density,
    expected_ratio,
    masked_ratio,
    native_ratio,
)


def test_wider_blocks_break_even_at_higher_densities():
    for arch, row in BREAK_EVEN.items():
        assert list(row.values()) == sorted(row.values())
        assert break_even_density(arch, (128, 32)) == row[32]
        assert break_even_density(arch, (48, 48)) == row[32]
    assert break_even_density(120, (64, 64)) == BREAK_EVEN[90][64]
    assert break_even_density(89, (64, 64)) == BREAK_EVEN[80][64]


def test_the_expected_time_grows_with_density_and_falls_with_block_and_rows():
    def ratio(density=0.2, block=4, positions=1024, channels=256):
        return native_ratio((channels, channels, 3, 3, block, block), density, positions)

    changes = {"density": (0.1, 0.2, 0.4), "block": (64, 32, 4, 1), "positions": (8192, 512, 64)}
    for name, values in {**changes, "channels": (512, 128, 16)}.items():
        found = [ratio(**{name: value}) for value in values]
        assert found == sorted(set(found))
    assert ratio(block=32, positions=64) == ratio(block=32, positions=8192)
    assert masked_ratio(32) > masked_ratio(8192) > 1


@pytest.mark.parametrize(
    ("layer", "measured"),
    [
        # python -m bench.dev.cpu_table: density, native / dense.
        (((256, 256, 3, 3, 1, 1), 2048), {0.1: 0.34, 0.3: 0.83}),
        (((256, 256, 3, 3, 32, 32), 2048), {0.1: 0.14, 0.3: 0.34}),
        (((64, 64, 3, 3, 4, 4), 32768), {0.1: 0.30, 0.3: 0.50}),
        (((1024, 1024, 1, 1, 1, 1), 128), {0.1: 0.63, 0.3: 1.35}),
    ],
)
def test_the_expected_time_is_near_what_was_measured(layer, measured):
    sizes, positions = layer
    for density, ratio in measured.items():
        assert native_ratio(sizes, density, positions) == pytest.approx(ratio, rel=0.4)


def test_bf16_is_expected_to_save_as_much_where_it_is_multiplied_in_pairs(monkeypatch):
    def expected(dtype, block=32, channels=256):
        return expected_ratio(dtype, (channels, channels, 3, 3, block, block), 0.2, 2048, 1)

    single, half = torch.float32, torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert expected(single) < expected(half) < 1.3 * expected(single)
    for other in ({"block": 8}, {"block": 16, "channels": 32}):  # by vectors over pixels, in fp32
        assert expected(half, **other) == pytest.approx(2 * expected(single, **other))
