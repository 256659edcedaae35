"""The fused passes against their definition in float64: outputs, statistics and every gradient."""

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, FLOOR, FUSED_CASES, make_layout
from kernel_checks import EVERYTHING, FUSIONS, check_fused

from sparse_kernels import BlockLayout, Norm, block_conv2d_fused, decompositions
from sparse_kernels.memory_order import in_order
from sparse_kernels.operators.fused_convolution import conv2d_fused

pytestmark = pytest.mark.usefixtures("poisoned_kernels")


def pairs_of_cases_and_fusions():
    """Yield each case with all that is fused, and with one other in turn; the rest are slow."""
    others = [fusion for fusion in FUSIONS if fusion != "all"]
    for number, name in enumerate(FUSED_CASES):
        for fusion in FUSIONS:
            is_quick = fusion in ("all", others[number % len(others)])
            yield pytest.param(name, fusion, marks=[] if is_quick else [pytest.mark.slow])


@pytest.mark.parametrize(("name", "fusion"), list(pairs_of_cases_and_fusions()))
def test_fused_convolution(name, fusion):
    torch.manual_seed(0)
    check_fused(FUSED_CASES[name], FUSIONS[fusion], torch.float32)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float32], ids=str)
@pytest.mark.parametrize("name", ["tma", "ragged"])
def test_fused_convolution_in_half_precision(name, dtype):
    torch.manual_seed(0)
    check_fused(FUSED_CASES[name], EVERYTHING, dtype)


@pytest.mark.parametrize("name", ["tma", "odd batch"])
def test_fused_convolution_in_tf32(name, tf32):
    """On a GPU, fp32 goes through TMA with this alone. Its mantissa is that of fp16."""
    torch.manual_seed(0)
    check_fused(FUSED_CASES[name], EVERYTHING, torch.float32, floor=FLOOR[torch.float16])


def make_fused(name: str, dtype: torch.dtype):
    """Return a function that maps x, values, and weight and bias of a norm, and these leaves."""
    case = FUSED_CASES[name]
    layout = make_layout(case, (*case.channels, *case.kernel))
    x = in_order(torch.randn(case.batch, case.channels[1], *case.image), case.order)
    values = torch.randn(layout.slots, *reversed(layout.block), device=DEVICE)
    vectors = torch.rand(2, case.channels[1], device=DEVICE)
    statistics = torch.rand(2, case.channels[1], device=DEVICE)

    def forward(x, values, *vectors):
        geometry = (case.stride, case.padding, case.dilation)
        norm = Norm(*statistics, *vectors)
        return block_conv2d_fused(x, values, layout, None, *geometry, norm=norm).y

    return forward, (x.to(DEVICE, dtype), values, *vectors)


@pytest.mark.parametrize("name", ["tma", "ragged", "unused slots"])
def test_autocast_rounds_no_gradient_of_the_values(name):
    torch.manual_seed(0)
    forward, leaves = make_fused(name, torch.float16)
    # What runs in half precision is rounded alike on both sides: only the sums differ.
    low = [leaves[0], leaves[1].half(), *leaves[2:]]
    found = []
    for given, enabled in ((leaves, True), (low, False)):
        given = [leaf.detach().requires_grad_() for leaf in given]
        with torch.autocast(DEVICE, torch.float16, enabled):
            y = forward(*given)
        found.append([y.detach(), *torch.autograd.grad(y, given, torch.ones_like(y))])
    for name, ours, rounded in zip(("y", "dx", "dvalues", "dweight", "dbias"), *found):
        if name != "dvalues":
            assert torch.equal(ours, rounded), name
    gradient, rounded = (run[2] for run in found)
    assert (gradient.dtype, rounded.dtype) == (torch.float32, torch.float16)
    assert torch.equal(gradient.half(), rounded)
    assert not torch.equal(gradient, rounded.float())


@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 3), (0, 1)])
def test_gradients_do_not_depend_on_which_are_wanted(wanted):
    torch.manual_seed(0)
    forward, leaves = make_fused("ragged", torch.float32)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    y = forward(*leaves)
    every = torch.autograd.grad(y, leaves, torch.ones_like(y))
    some = [leaf if i in wanted else leaf.detach() for i, leaf in enumerate(leaves)]
    y = forward(*some)
    found = torch.autograd.grad(y, [some[i] for i in wanted], torch.ones_like(y))
    assert all(torch.equal(gradient, every[i]) for gradient, i in zip(found, wanted))


@pytest.mark.parametrize("name", ["tma", "ragged", "ragged rows", "strided, dilated, not square"])
def test_padding_and_ragged_channels_stay_zero_under_a_large_shift(name):
    torch.manual_seed(0)
    check_fused(
        FUSED_CASES[name], {"norm": True, "rectified": True}, torch.float32, shift_by=1000.0
    )


def test_elsewhere_operators_do_the_same_one_after_another(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setenv("SPARSE_ENGINE_BACKEND", "masked")
    for options in (FUSIONS["all"], FUSIONS["fixed norm, other gradient"], {"residual": True}):
        check_fused(FUSED_CASES["strided, dilated, not square"], options, torch.float32)


def test_a_nan_in_the_input_is_not_rectified_away():
    layout = BlockLayout((16, 16), (16, 16), torch.arange(1)).to(DEVICE)
    x = torch.full((16, 16, 1, 1), torch.nan, device=DEVICE)
    one = torch.ones(16, device=DEVICE)
    values = torch.ones(1, 16, 16, device=DEVICE)
    norm = Norm(one, one, one, one, batch=False)
    assert block_conv2d_fused(x, values, layout, norm=norm).y.isnan().all()


@pytest.mark.parametrize("order", ["contiguous", "rows"])
def test_the_definition_gives_the_same_in_the_same_order(order):
    torch.manual_seed(0)
    layout = make_layout(FUSED_CASES["ragged"], (40, 24, 3, 3))
    x = in_order(torch.randn(4, 24, 3, 2, device=DEVICE), order)
    values = torch.randn(layout.slots, *reversed(layout.block), device=DEVICE)
    vectors = torch.rand(3, max(layout.shape), device=DEVICE)
    bias, (scale, shift) = vectors[0, :40], vectors[1:, :24]
    residual = torch.randn(4, 40, 3, 2, device=DEVICE)
    numbers = ([1, 1], [1, 1], [1, 1])
    rest = (bias, scale, shift, True, residual, True, True)
    arguments = (x, values, layout.tensors(), layout.sizes(), *numbers, *rest)
    found, wanted = decompositions()[conv2d_fused](*arguments), conv2d_fused(*arguments)
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
        assert own.stride() == other.stride()


def test_compiled_graphs_give_the_same():
    torch.manual_seed(0)
    case = FUSED_CASES["tma"]
    layout = make_layout(case, (48, 32, 3, 3))
    x = in_order(torch.randn(32, 32, 3, 2, device=DEVICE), "rows")
    values = torch.randn(layout.slots, 16, 32, device=DEVICE)
    norm = Norm(*torch.rand(4, 32, device=DEVICE))
    residual = in_order(torch.randn(32, 48, 3, 2, device=DEVICE), "rows")

    def forward(x, values):
        options = {"padding": 1, "norm": norm, "residual": residual, "statistics": True}
        return block_conv2d_fused(x, values, layout, **options)

    def step(forward):
        leaves = [leaf.detach().requires_grad_() for leaf in (x, values)]
        y, *sums, x_again = forward(*leaves)
        gradients = torch.autograd.grad((y + x_again.sum()).square().sum(), leaves)
        return y, *sums, *gradients

    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    for a, b in zip(step(forward), step(compiled)):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
