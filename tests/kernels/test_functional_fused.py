"""Arguments of the fused operators that do not fit."""

import pytest
import torch

from sparse_kernels import BlockLayout, Norm, block_conv2d_fused


def vectors(channels: int = 16, **others) -> Norm:
    return Norm(*torch.ones(4, channels))._replace(**others)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"norm": vectors(8)}, ValueError, r"norm.mean should be \[16\], found \[8\]"),
        (
            {"norm": vectors(variance=torch.ones(16).half())},
            TypeError,
            "norm.variance should be torch.float32 on cpu, found torch.float16 on cpu",
        ),
        (
            {"norm": vectors(scale=torch.ones(16), shift=torch.ones(8))},
            ValueError,
            r"norm.shift should be \[16\], found \[8\]",
        ),
        (
            {"residual": torch.ones(1, 16, 2, 2)},
            ValueError,
            r"residual should be \[1, 16, 1, 1\], found \[1, 16, 2, 2\]",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, message):
    layout = BlockLayout((16, 16, 2, 2), (16, 16), torch.arange(1))
    x, values = torch.ones(1, 16, 2, 2), torch.ones(1, 16, 16)
    with pytest.raises(error, match=message):
        block_conv2d_fused(x, values, layout, **options)


def test_lopsided_padding_is_refused_with_a_norm():
    layout = BlockLayout((16, 16, 2, 2), (16, 16), torch.arange(1))
    x, values = torch.ones(1, 16, 2, 2), torch.ones(1, 16, 16)
    with pytest.raises(ValueError, match="not symmetric"):
        block_conv2d_fused(x, values, layout, padding="same", norm=vectors())
