"""The tuner takes only tiles that are right and faster, and its cache outlives the process."""

import json
import logging

import pytest
import torch
from kernel_cases import DEVICE, use_small_tiles

from sparse_engine import SparseConv2d, SparseLinear
from sparse_engine.errors import InputError
from sparse_engine.tune import tune
from sparse_kernels import BlockLayout, tuner
from sparse_kernels.activation import in_order
from sparse_kernels.tile_cache import FOLDER, TileCache, cache_of
from sparse_kernels.tiles import Tile

SMALL, LARGE = Tile(16, 16, 4, 3), Tile(32, 16, 4, 3)


@pytest.fixture(autouse=True)
def _empty_cache(triton_backend, monkeypatch, tmp_path):
    if DEVICE == "cpu":
        use_small_tiles(monkeypatch)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    cache_of.cache_clear()
    yield
    cache_of.cache_clear()


def layer() -> tuple[torch.Tensor, torch.Tensor, BlockLayout]:
    torch.manual_seed(0)
    layout = BlockLayout((32, 32, 3, 3), (16, 16), torch.arange(0, 36, 5)).to(DEVICE)
    x = in_order(torch.randn(4, 32, 3, 3, device=DEVICE), "rows")
    return x, torch.randn(layout.slots, 16, 16, device=DEVICE), layout


def times(monkeypatch, seconds: dict[int, float]) -> None:
    """Let a pass take so long with a tile of so many positions; 1 s with the table's."""
    from sparse_kernels.tile_choice import _State

    def measured(run) -> float:
        run()
        return 1.0 if _State.forced is None else seconds[_State.forced.bm]

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
    from sparse_kernels import gather

    run = gather._gather_pointers
    monkeypatch.setattr(gather, "_gather_pointers", lambda *a: (launched.append(a[-2]), run(*a)))
    from sparse_kernels import block_conv2d

    x, values, layout = layer()
    block_conv2d(x, values, layout, padding=1)
    assert launched == [LARGE]


def test_what_is_not_noticeably_faster_is_left_alone(monkeypatch):
    times(monkeypatch, {16: 0.99, 32: 2.0})
    assert tune_layer() == {}


def test_a_wrong_tile_is_never_taken(monkeypatch, caplog):
    times(monkeypatch, {16: 0.5, 32: 0.1})
    from sparse_kernels import gather

    run = gather._gather_pointers

    def wrong(src, values, written, vectors, index, tile, constants):
        run(src, values, written, vectors, index, tile, constants)
        if tile == LARGE:
            written[0].mul_(1.5)

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
    cache_of.cache_clear()
    assert cache_of(torch.device(DEVICE)).tiles == found


def test_saving_keeps_what_another_process_found(tmp_path):
    path = tmp_path / "tiles.json"
    first, second = TileCache(path), TileCache(path)
    first.update({"a": SMALL})
    second.update({"b": LARGE})
    first.save()
    second.save()
    assert TileCache(path).tiles == {"a": SMALL, "b": LARGE}
    assert first.tiles == {"a": SMALL}  # read once: nothing changes under a running process


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": 3}', '{"a": [16, 16]}', json.dumps({"a": [1 << 20, 16, 4, 3, 0]})]
)
def test_a_damaged_file_is_ignored_and_said(text, tmp_path, caplog):
    path = tmp_path / "tiles.json"
    path.write_text(text)
    assert TileCache(path).tiles == {}
    assert "cannot be used" in caplog.text


def test_candidates_fit_the_chip():
    x = torch.empty(128, 64, 8, 8, dtype=torch.bfloat16, device="meta")
    x = x.contiguous(memory_format=torch.channels_last)
    for reduced in ((64, 128), None):
        tiles = list(tuner.candidate_tiles(x, (128, 64), reduced))
        assert 4 <= len(tiles) <= 40
        assert len(set(tiles)) == len(tiles)


def test_a_model_is_tuned_layer_by_layer(monkeypatch):
    times(monkeypatch, {16: 0.5, 32: 0.4})
    monkeypatch.setattr(tuner, "candidate_tiles", lambda *_: [SMALL, LARGE])
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        SparseConv2d(16, 32, 3, padding="same", density=0.5, block=(16, 16)),
        torch.nn.BatchNorm2d(32),
        torch.nn.Flatten(),
        SparseLinear(32 * 4, 16, density=0.5, block=(16, 16)),
    ).to(DEVICE)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = tune(model, torch.randn(2, 16, 2, 2, device=DEVICE))
    assert len(found) == 6
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training


def test_a_model_without_kernels_is_an_error():
    with pytest.raises(InputError, match="nothing to tune"):
        tune(torch.nn.Linear(4, 4), torch.ones(1, 4))
