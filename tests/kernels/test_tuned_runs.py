"""The tuner tries a tap at a time and other runs where a layer is in strips."""

import pytest
import torch
from kernel_cases import DEVICE, Case, make_layout

from sparse_kernels import BlockLayout, block_conv2d, tuner
from sparse_kernels.memory_order import in_order
from sparse_kernels.triton.tile_choice import TAPS, Tuned, TunedRun, _State, forced, tuned_tiles

pytestmark = pytest.mark.usefixtures("empty_cache")

STRIP = Case(strips=True, image=(2, 8), batch=3, channels=(32, 32), density=0.6)


def strip_layer() -> tuple[torch.Tensor, torch.Tensor, BlockLayout]:
    torch.manual_seed(0)
    layout = make_layout(STRIP, (32, 32, 3, 3))
    x = in_order(torch.randn(3, 32, 2, 8, device=DEVICE, dtype=torch.float16), "rows")
    return x, torch.randn(layout.slots, 16, 16, device=DEVICE, dtype=torch.float16), layout


def strip_times(monkeypatch, faster) -> set[TunedRun]:
    """Let a call take half of a second where `faster` says so of what is tried, else 1 s.

    Returns what was tried.
    """
    seen = set()

    def measured(run) -> float:
        tried = [t for t in _State.tiles.values() if isinstance(t, TunedRun)]
        seen.update(tried)
        return 0.5 if tried and faster(tried[0]) else 1.0

    monkeypatch.setattr(tuner, "_seconds", measured)
    return seen


def tune_strips() -> tuple[dict[str, Tuned], set[str]]:
    """Return what is found for a layer of strips, and the kernels that it then launches."""
    x, values, layout = strip_layer()
    found = tuner.tune_conv2d(x, values, layout, (1, 1), (1, 1), (1, 1))
    with forced() as launched:
        block_conv2d(x, values, layout, padding=1)
    return found, {launch.key.partition(" float16")[0] for launch in launched}


def test_a_tap_at_a_time_where_that_is_faster_than_runs(monkeypatch):
    seen = strip_times(monkeypatch, lambda run: run == TAPS)
    found, launched = tune_strips()
    assert set(found.values()) == {TAPS}
    assert {key.partition(" float16")[0] for key in found} == {
        "runs forward", "runs input gradient", "runs weight gradient",
    }  # fmt: skip
    assert launched == {"runs forward", "forward"}
    # Runs next to the table's, in the interpreter 8 long and in groups of three.
    assert {run.length for run in seen} == {0, 2, 4, 8}
    assert {run.strips for run in seen if run.taps} == {1, 3}


def test_runs_that_are_faster_are_used_from_then_on(monkeypatch):
    strip_times(monkeypatch, lambda run: run.length == 4)
    found, launched = tune_strips()
    assert {run.length for run in found.values()} == {4}
    assert launched == {"runs forward"}
    from sparse_kernels.triton import run_gather

    lengths = []
    run = run_gather._launch_pointers

    def noted(call, chosen, tiles, sums):
        lengths.append(chosen.length)
        run(call, chosen, tiles, sums)

    monkeypatch.setattr(run_gather, "_launch_pointers", noted)
    tuner.save(torch.device(DEVICE))
    tuned_tiles.cache_clear()
    block_conv2d(*strip_layer(), padding=1)
    assert lengths == [4]
