"""Arguments that do not fit: the exception and a message with what was expected and found."""

import pytest
import torch

from sparse_kernels import BlockLayout, block_conv2d, block_linear


def convolution(x=(2, 20, 6, 6), values=(5, 16, 32), bias=(40,), **changes):
    """Call block_conv2d on a weight [40, 20, 3, 3] with some arguments replaced."""
    layout = BlockLayout((40, 20, 3, 3), (32, 16), torch.arange(5))
    x, values, bias = (
        t if isinstance(t, torch.Tensor) else torch.ones(t) for t in (x, values, bias)
    )
    arguments = {"x": x, "values": values, "layout": layout, "bias": bias, **changes}
    return block_conv2d(**arguments)


def linear(**changes):
    """Call block_linear on a weight [40, 20] with some arguments replaced."""
    arguments = {
        "x": torch.ones(2, 20),
        "values": torch.ones(3, 16, 32),
        "layout": BlockLayout((40, 20), (32, 16), torch.arange(3)),
        "bias": torch.ones(40),
        **changes,
    }
    return block_linear(**arguments)


def test_arguments_that_fit():
    assert convolution().shape == (2, 40, 4, 4)
    assert linear().shape == (2, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": (6, 6)}, r"x must be \[N, C, H, W\] or \[C, H, W\], found shape \[6, 6\]"),
        ({"x": (1, 2, 20, 6, 6)}, r"found shape \[1, 2, 20, 6, 6\]"),
        ({"x": (2, 21, 6, 6)}, "x should have 20 channels, found 21"),
        ({"x": (21, 6, 6)}, "x should have 20 channels, found 21"),
        ({"values": (4, 16, 32)}, r"= \[5, 16, 32\], found \[4, 16, 32\]"),
        ({"values": (5, 32, 16)}, r"= \[5, 16, 32\], found \[5, 32, 16\]"),
        ({"bias": (20,)}, r"bias should be \[40\], found \[20\]"),
        ({"bias": (40, 1)}, r"bias should be \[40\], found \[40, 1\]"),
        ({"padding": "full"}, "numbers, 'same' or 'valid', found 'full'"),
        ({"padding": "same", "stride": 2}, r"'same' needs stride 1, found \[2, 2\]"),
        ({"padding": "same", "stride": (1, 2)}, r"'same' needs stride 1, found \[1, 2\]"),
        ({"padding": -1}, "padding must be one or two integers of at least 0, found -1"),
        ({"stride": 0}, "stride must be one or two integers of at least 1, found 0"),
        ({"stride": (1, 1, 1)}, r"stride must be one or two .* found \(1, 1, 1\)"),
        ({"dilation": (1, 0)}, r"dilation must be one or two .* found \(1, 0\)"),
        ({"x": (2, 20, 2, 6)}, r"kernel \[3, 3\] .* larger than the padded image \[2, 6\]"),
        ({"dilation": 3, "padding": (0, 1)}, r"dilation \[3, 3\] .* padded image \[6, 8\]"),
        ({"values": torch.ones(5, 16, 32, device="meta")}, "x is on cpu but values on meta"),
        ({"bias": torch.ones(40, device="meta")}, "x is on cpu but bias on meta"),
        ({"x": torch.ones(2, 20, 6, 6, device="meta")}, "x is on meta but values on cpu"),
    ],
)
def test_a_convolution_that_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        convolution(**changes)


def test_a_layout_on_another_device():
    layout = BlockLayout((40, 20, 3, 3), (32, 16), torch.arange(5)).to("meta")
    with pytest.raises(ValueError, match="x is on cpu but layout on meta; move one of them"):
        convolution(layout=layout)


def test_a_layer_on_the_meta_device_keeps_its_layout():
    meta = {"device": "meta"}
    x, values, bias = (
        torch.ones(2, 20, 6, 6, **meta),
        torch.ones(5, 16, 32, **meta),
        torch.ones(40, **meta),
    )
    assert convolution(x=x, values=values, bias=bias).shape == (2, 40, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(2, 20, 6, 6).int()}, "x must be floating point, found torch.int32"),
        ({"x": torch.ones(2, 20, 6, 6).cfloat()}, "floating point, found torch.complex64"),
        ({"values": torch.ones(5, 16, 32).half()}, "be torch.float32 like x, found torch.float16"),
        ({"bias": torch.ones(40).double()}, "bias should be torch.float32 .* torch.float64"),
    ],
)
def test_a_dtype_that_does_not_fit(changes, message):
    with pytest.raises(TypeError, match=message):
        convolution(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(())}, r"x must be \[\.\.\., C\], found a tensor without dimensions"),
        ({"x": torch.ones(2, 21)}, "x should have 20 channels, found 21"),
        ({"x": torch.ones(21)}, "x should have 20 channels, found 21"),
        ({"values": torch.ones(3, 16, 16)}, r"= \[3, 16, 32\], found \[3, 16, 16\]"),
        ({"bias": torch.ones(20)}, r"bias should be \[40\], found \[20\]"),
        (
            {"layout": BlockLayout((40, 20, 1, 3), (32, 16), torch.arange(3))},
            r"a linear layer needs a layout \(O, C\), found \(40, 20, 1, 3\)",
        ),
    ],
)
def test_a_linear_layer_that_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        linear(**changes)
