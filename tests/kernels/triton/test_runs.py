"""Runs of pixels for strips, against float64: interpreted on a CPU, compiled on a GPU."""

from dataclasses import replace

import pytest
import torch
from kernel_cases import DTYPES, TILE, Case, make_layout
from kernel_checks import FUSIONS, check_convolution, check_fused

from sparse_kernels.index_tensors import split, strip_lists
from sparse_kernels.triton import launch as launcher
from sparse_kernels.triton import run_weight_grad
from sparse_kernels.triton.run_tiles import run_length

pytestmark = pytest.mark.usefixtures("poisoned_kernels")

BASE = Case(strips=True, image=(2, 4), batch=3)
CASES = {
    "plain": replace(BASE, batch=TILE, image=(3, 4)),
    "run ends inside a row": replace(BASE, batch=2 * TILE, channels=(32, 16), image=(2, 5)),
    "narrower than a run": replace(BASE, image=(3, 1)),
    "odd batch": replace(BASE, batch=5, image=(3, 6)),
    "channels_last": replace(BASE, image=(4, 5), order="channels_last"),
    "contiguous": replace(BASE, batch=2, image=(2, 9), order="contiguous"),
    "kernel wider than the image": replace(BASE, kernel=(1, 7), padding=(0, 3), image=(2, 3)),
    "seven wide": replace(BASE, kernel=(2, 7), padding=(1, 2), image=(3, 9), density=0.2),
    "two wide, no padding": replace(BASE, kernel=(3, 2), padding=(0, 0), image=(4, 4)),
    "much padding": replace(BASE, batch=TILE, kernel=(1, 3), padding=(1, 4), image=(1, 2)),
    "ragged": replace(BASE, channels=(37, 21)),
    "ragged rows": replace(BASE, channels=(40, 24), block=(32, 16), batch=TILE),
    "no power of two": replace(BASE, channels=(48, 96), block=(48, 48)),
    "one strip": replace(BASE, density=0.0),
    "unused slots": replace(BASE, unused=2, bias=False, batch=TILE),
    "full": replace(BASE, density=1.0, kernel=(1, 3), padding=(0, 1)),
}
BY_TAPS = {
    "strided": replace(BASE, stride=(1, 2), image=(3, 5)),
    "dilated": replace(BASE, dilation=(1, 2), image=(3, 6)),
    "one wide": replace(BASE, kernel=(3, 1), padding=(1, 0)),
    "eight wide": replace(BASE, kernel=(1, 8), padding=(0, 4), channels=(16, 16)),
}


@pytest.fixture
def launched(monkeypatch):
    """Return the names of the kernels that are launched."""
    names = set()

    def launch(like, kernel, grid, /, **arguments):
        names.add(kernel.fn.__name__)
        launcher.launch(like, kernel, grid, **arguments)

    for file in ("gather", "weight_grad", "run_gather", "run_weight_grad"):
        monkeypatch.setattr(f"sparse_kernels.triton.{file}.launch", launch)
    return names


@pytest.mark.parametrize("name", CASES)
def test_convolution(name, launched):
    torch.manual_seed(0)
    case = CASES[name]
    check_convolution(case, torch.float16)
    variant = "pointers" if case.batch % TILE else "tma"
    assert launched == {f"run_gather_{variant}", f"run_weight_grad_{variant}"}


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float16], ids=str)
@pytest.mark.parametrize("name", ["plain", "ragged", "kernel wider than the image"])
def test_convolution_in_another_type(name, dtype):
    torch.manual_seed(0)
    check_convolution(CASES[name], dtype)


@pytest.mark.parametrize("name", BY_TAPS)
def test_what_has_no_runs_goes_a_tap_at_a_time(name, launched):
    torch.manual_seed(0)
    check_convolution(BY_TAPS[name], torch.float16)
    assert launched == {"gather_pointers", "weight_grad_pointers"}


@pytest.mark.parametrize("options", ["all", "fixed norm, other gradient"])
@pytest.mark.parametrize("name", ["plain", "odd batch", "channels_last", "ragged"])
def test_fused_convolution(name, options):
    torch.manual_seed(0)
    check_fused(CASES[name], FUSIONS[options], torch.float32)


@pytest.mark.parametrize(
    ("width", "batch", "forward"), [(4, TILE, "run_gather_tma"), (5, TILE, "gather_tma")]
)
def test_statistics_are_by_runs_where_all_tiles_are_whole(width, batch, forward, launched):
    torch.manual_seed(0)
    case = replace(BASE, batch=batch, image=(1, width), channels=(16, 16), density=1.0)
    check_fused(case, FUSIONS["all"], torch.float16)
    assert launched == {forward, "run_gather_tma", "run_weight_grad_tma"}


@pytest.mark.parametrize("together", [1, 2, 4])
@pytest.mark.parametrize("name", ["plain", "odd batch", "unused slots", "one strip", "seven wide"])
def test_strips_that_share_a_program(name, together, monkeypatch):
    torch.manual_seed(together)
    table = run_weight_grad.run_weight_grad_tile
    tile = lambda *a: table(*a)._replace(strips=together)  # noqa: E731
    monkeypatch.setattr(run_weight_grad, "run_weight_grad_tile", tile)
    check_convolution(CASES[name], torch.float16)


@pytest.mark.parametrize("strips", [False, True])
def test_tiles_wider_than_their_block_are_masked(strips, monkeypatch):
    masked = []

    def launch(like, kernel, grid, /, **arguments):
        masked.append(arguments["RAGGED"])
        launcher.launch(like, kernel, grid, **arguments)

    for file in ("gather", "weight_grad", "run_gather", "run_weight_grad"):
        monkeypatch.setattr(f"sparse_kernels.triton.{file}.launch", launch)
    case = replace(CASES["no power of two"], strips=strips, kernel=(1, 3), padding=(0, 1))
    check_convolution(case, torch.float16)
    assert len(masked) == 3
    assert all(masked)


def test_the_most_groups_that_there_can_be():
    for counts in ((3, 0, 2, 0), (1, 1, 1, 1), (0, 0, 0, 5), (4, 4, 2, 3)):  # the last is of none
        for together in (1, 2, 3):
            groups = sum(-(-count // together) for count in counts)
            most = run_weight_grad.count_groups(sum(counts), 3, together)
            assert groups <= most <= groups + 3


def test_the_longest_runs_that_waste_little():
    assert [run_length(width, 8) for width in (32, 28, 14, 7, 4, 1)] == [8, 4, 8, 8, 4, 2]
    assert [run_length(width, 4) for width in (14, 8, 7, 2)] == [4, 4, 4, 2]
    assert [run_length(width, 4, whole=True) for width in (32, 14, 7)] == [4, 2, 0]
    assert run_length(32, 0) == 0


def test_lists_of_strips_are_short_where_numbers_fit():
    layout = make_layout(BASE, (48, 32, 3, 3))
    slots, strips = split(layout.tensors())
    assert len(slots) == len(strips) == 15
    assert {t.dtype for t in slots} == {torch.int32}
    assert {t.dtype for t in strips[1:]} == {torch.int16}
    ids = torch.arange(3 * (2**15 - 1), device="meta")
    for more, dtype in ((0, torch.int16), (3, torch.int32)):
        lists = strip_lists(torch.cat([ids, ids[:more]]), (181, 182, 3, 3))
        assert {t.dtype for t in lists[1:]} == {dtype}
