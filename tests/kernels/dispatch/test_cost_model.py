"""When a layer runs dense or on the native path: the table of break-even, and the fitted times."""

from sparse_kernels.dispatch.cost_model import BREAK_EVEN, break_even_density, native_ratio


def test_wider_blocks_break_even_at_higher_densities():
    for arch, row in BREAK_EVEN.items():
        assert list(row.values()) == sorted(row.values())
        assert break_even_density(arch, (128, 32)) == row[32]
        assert break_even_density(arch, (48, 48)) == row[32]
    assert break_even_density(120, (64, 64)) == BREAK_EVEN[90][64]
    assert break_even_density(89, (64, 64)) == BREAK_EVEN[80][64]


def test_the_expected_time_grows_with_density_and_falls_with_block_and_rows():
    def ratio(density=0.2, block=32, positions=1024):
        return native_ratio((256, 256, 3, 3, block, block), density, positions)

    for name, values in {"density": (0.1, 0.2, 0.4), "block": (64, 32, 16)}.items():
        found = [ratio(**{name: value}) for value in values]
        assert found == sorted(found)
        assert len(set(found)) == 3
    assert ratio(positions=64) > ratio(positions=1024) > ratio(positions=8192)
    assert ratio(positions=8192) == ratio(positions=10**6)
