"""The tuner takes only tiles that are right and faster, and its cache outlives the process."""

import copy
import logging

import pytest
import torch
from kernel_cases import DEVICE

from sparse_engine import fuse, sparsify, to_rows
from sparse_engine.errors import InputError
from sparse_engine.models.wide_resnet import PreActivationBlock
from sparse_engine.training.times.tuning import tune
from sparse_kernels import BlockLayout, block_conv2d, tuner
from sparse_kernels.memory_order import in_order
from sparse_kernels.triton.tile_choice import (
    Launch,
    _State,
    forced,
    launch_key,
    tuned_tiles,
)
from sparse_kernels.triton.tiles import Tile

SMALL, LARGE = Tile(16, 16, 4, 3), Tile(32, 16, 4, 3)


pytestmark = pytest.mark.usefixtures("empty_cache")


def layer() -> tuple[torch.Tensor, torch.Tensor, BlockLayout]:
    torch.manual_seed(0)
    layout = BlockLayout((32, 32, 3, 3), (16, 16), torch.arange(0, 36, 5)).to(DEVICE)
    x = in_order(torch.randn(4, 32, 3, 3, device=DEVICE), "rows")
    return x, torch.randn(layout.slots, 16, 16, device=DEVICE), layout


def times(monkeypatch, seconds: dict[int, float]) -> None:
    """Let a call take so long with a tile of so many positions; 1 s with the present one."""

    def measured(run) -> float:
        tiles = [tile for tile in _State.tiles.values() if tile is not None]
        return seconds[tiles[0].bm] if tiles else 1.0

    monkeypatch.setattr(tuner, "_seconds", measured)


def tune_layer(candidates=(SMALL, LARGE)) -> dict[str, Tile]:
    return tuner.tune_conv2d(*layer(), (1, 1), (1, 1), (1, 1), candidates)


def test_the_fastest_tile_is_used_from_then_on(monkeypatch):
    times(monkeypatch, {16: 0.5, 32: 0.4})
    found = tune_layer()
    assert [key.split(" float32")[0] for key in found] == [
        "forward",
        "input gradient",
        "weight gradient",
    ]
    assert set(found.values()) == {LARGE}
    launched = []
    from sparse_kernels.triton import gather

    run = gather._gather_pointers

    def noted(call, tile, sums):
        launched.append(tile)
        run(call, tile, sums)

    monkeypatch.setattr(gather, "_gather_pointers", noted)
    x, values, layout = layer()
    block_conv2d(x, values, layout, padding=1)
    assert launched == [LARGE]


def test_what_is_not_noticeably_faster_is_left_alone(monkeypatch):
    times(monkeypatch, {16: 0.99, 32: 2.0})
    assert tune_layer() == {}


def test_a_wrong_tile_is_never_taken(monkeypatch, caplog):
    times(monkeypatch, {16: 0.5, 32: 0.1})
    from sparse_kernels.triton import gather

    run = gather._gather_pointers

    def wrong(call, tile, sums):
        run(call, tile, sums)
        if tile == LARGE:
            call.dst.mul_(1.5)

    monkeypatch.setattr(gather, "_gather_pointers", wrong)
    with caplog.at_level(logging.WARNING):
        found = tune_layer()
    assert {k.split(" float32")[0]: t for k, t in found.items()} == {
        "forward": SMALL,
        "input gradient": SMALL,
        "weight gradient": LARGE,
    }
    assert "is wrong by" in caplog.text


def test_a_tile_that_cannot_run_is_passed_over(monkeypatch):
    times(monkeypatch, {16: 0.5, 17: 0.1})
    assert set(tune_layer((Tile(17, 16, 4, 3), SMALL)).values()) == {SMALL}  # no power of two


def test_tiles_are_found_again_by_another_process(monkeypatch):
    times(monkeypatch, {16: 0.5, 32: 0.4})
    found = tune_layer()
    tuner.save(torch.device(DEVICE))
    tuned_tiles.cache_clear()
    assert tuned_tiles(torch.device(DEVICE)).entries == found


def launches(x, block, fits=lambda tile: not tile.tma) -> list[Launch]:
    """Return a plain and a fused launch of each pass of a layer of 256 channels."""
    sizes, geometry = (256, 256, 3, 3, *block), (1, 1, 1, 1, 1, 1)
    return [
        Launch(launch_key(name, x, x, sizes, 10, geometry, fused), x, fits)
        for name in ("forward", "input gradient", "weight gradient")
        for fused in ("plain", "affine_relu+residual+statistics")
    ]


@pytest.mark.parametrize("block", [(16, 16), (64, 64), (128, 64), (128, 128)])
def test_candidates_fit_the_chip(block):
    x = torch.empty(128, 256, 8, 8, dtype=torch.bfloat16, device="meta")
    x = x.contiguous(memory_format=torch.channels_last)
    counts = []
    for launch in launches(x, block):
        assert launch.block == block
        assert not any(tile.tma for tile in tuner.candidate_tiles(launch))
        tiles = list(tuner.candidate_tiles(launch._replace(fits=lambda tile: True)))
        assert all(tile.tma for tile in tiles)
        assert len(set(tiles)) == len(tiles)
        for tile in tiles:
            sums = block[0] * block[1] if tile.bk == 0 else tile.bm * min(block)
            assert sums <= tile.warps * 32 * (128 if launch.is_plain else 64)
        # The table's own could be found.
        assert {tile.warps for tile in tiles} >= {8}
        counts.append(len(tiles))
    assert all(2 <= fused <= plain <= 24 for plain, fused in zip(counts[::2], counts[1::2]))


def network() -> torch.nn.Module:
    """Return a network of a fused block and a linear layer, for images of 6x6 pixels, in rows.

    Two images then take more than a small tile, and less than a large one.
    """
    torch.manual_seed(0)
    block = PreActivationBlock(16, 16, 2, 0.5)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 1),
        block,
        torch.nn.Conv2d(16, 16, 1),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 9, 32),
    )
    sparsify(model, 0.5, "uniform", block=(16, 16), skip=["0", "2"])
    torch.nn.init.zeros_(block.norm2.weight)  # gradients of zero, with which all tiles are right
    return fuse(to_rows(model.to(DEVICE))).train()


def make_step(model: torch.nn.Module, x: torch.Tensor) -> None:
    with torch.autocast(DEVICE, torch.float16):
        y = model(x)
    y.square().sum().backward()


def test_what_a_step_of_a_fused_network_launches_is_tuned(monkeypatch):
    times(monkeypatch, {16: 0.5, 32: 0.4})
    monkeypatch.setattr(tuner, "candidate_tiles", lambda _: [SMALL, LARGE])
    model, x = network(), torch.randn(2, 3, 6, 6, device=DEVICE)
    make_step(model, x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    ids = [m.layout.block_ids.clone() for m in model.modules() if hasattr(m, "layout")]
    random = torch.get_rng_state()
    found = tune(model, x, torch.float16)
    assert torch.equal(torch.get_rng_state(), random)
    with forced() as launched:
        make_step(copy.deepcopy(model), x)
    assert {launch.key for launch in launched} == set(found)
    assert len(found) == 9  # three of each of three layers
    assert sum(launch.is_plain for launch in launched) == 5  # all of the linear layer's
    assert set(found.values()) == {LARGE}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients))
    layouts = [m.layout for m in model.modules() if hasattr(m, "layout")]
    assert all(torch.equal(a.block_ids, b) for a, b in zip(layouts, ids))
    assert model.training


def test_a_wrong_tile_of_a_fused_pass_is_never_taken(monkeypatch, caplog):
    """Also where its gradients are zero, and where only its sums are wrong."""
    times(monkeypatch, {16: 0.5, 32: 0.1})
    monkeypatch.setattr(tuner, "candidate_tiles", lambda _: [SMALL, LARGE])
    from sparse_kernels.triton import gather

    run = gather._gather_pointers

    def wrong(call, tile, sums):
        run(call, tile, sums)
        if tile == LARGE:
            (call.dst if sums is None else sums).mul_(1.5)

    monkeypatch.setattr(gather, "_gather_pointers", wrong)
    found = tune(network(), torch.randn(2, 3, 6, 6, device=DEVICE))
    passes = {}
    for key, tile in found.items():
        passes.setdefault(key.split(" float")[0], set()).add(tile)
    assert passes == {"forward": {SMALL}, "input gradient": {SMALL}, "weight gradient": {LARGE}}


def test_the_first_process_measures_and_tells_the_others(monkeypatch):
    times(monkeypatch, {16: 0.5, 32: 0.4})
    monkeypatch.setattr(tuner, "candidate_tiles", lambda _: [SMALL, LARGE])
    sent, collectives = [], [0, 0]

    def broadcast(box):
        rank = tuner._rank()
        if rank == 0:
            sent.append(list(box))
        box[:] = sent[collectives[rank]]
        collectives[rank] += 1

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    found = []
    for rank in range(2):
        tuned_tiles.cache_clear()
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        if rank == 1:
            monkeypatch.setattr(tuner, "_fastest", None)
        found.append(tune(network(), torch.randn(2, 3, 6, 6, device=DEVICE)))
        assert tuned_tiles(torch.device(DEVICE)).entries == found[rank]
        with pytest.raises(InputError, match="nothing to tune"):
            tune(torch.nn.Linear(4, 4), torch.ones(1, 4))
    assert found[0] == found[1] != {}
    assert collectives == [2, 2]


def test_a_model_without_kernels_is_an_error():
    with pytest.raises(InputError, match="nothing to tune"):
        tune(torch.nn.Linear(4, 4), torch.ones(1, 4))
