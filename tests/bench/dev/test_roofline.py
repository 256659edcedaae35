"""The model of GPU traffic, by hand: programs of small layers, their waves, and what steps take."""

from argparse import Namespace

import pytest

from bench.dev import programs, roofline, waves
from bench.dev.programs import Layer, gather, weight_grad
from bench.dev.roofline import Rest, Shape
from bench.speed.networks import TINY
from bench.speed.roofline import H200

# One strip for its only block: 64 channels in and out, 8x8 pixels of 128 images.
STRIP = Layer((64, 64), (3, 3), (8, 8), 128, (64, 64), 3, strips=True)
TAPS = STRIP._replace(strips=False)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_program_of_runs(transposed):
    work = gather(STRIP, transposed)
    # 4 pixels x 64 images: 8 rows x 2 runs x 2 halves of the batch.
    assert work.programs == 32
    assert work.program.flops == 2 * (4 * 3) * 64 * 64 * 64
    loaded = 2 * (6 * 64 * 64 + 3 * 64 * 64)
    assert loaded == 73_728
    assert work.program.l2 == loaded + 2 * (4 * 64 * 64)
    # wgmma reads two operands of 64 x 64 for each of 12 products.
    assert work.program.shared == loaded + 12 * 2 * (2 * 64 * 64)
    assert work.memory == 2 * (2 * 64 * 64 * 128 + 3 * 64 * 64)
    assert work.sums == 0


def test_a_program_of_one_tap_at_a_time():
    work = gather(TAPS, transposed=False)
    assert work.programs == 64  # pixels, of 128 images each
    assert work.program.flops == 3 * 2 * 128 * 64 * 64
    assert work.program.l2 == 3 * 2 * (128 * 64 + 64 * 64) + 2 * 128 * 64
    assert 3 * 2 * (128 * 64 + 64 * 64) / work.program.flops == pytest.approx(1 / 42.7, rel=1e-3)


def test_a_weight_gradient_of_one_share_and_of_several():
    runs, taps = weight_grad(STRIP, splits=1), weight_grad(TAPS, splits=1)
    # 8 runs x 128 images, of which 10 tiles of x and 8 of dy feed 24 products.
    assert (runs.programs, taps.programs) == (1, 3)
    assert runs.program.flops == 3 * taps.program.flops == 8 * 128 * 24 * 2 * 64 * 64
    assert runs.program.l2 == 8 * 128 * 18 * 64 * 2 + 3 * 64 * 64 * 2
    assert taps.program.l2 == 64 * 128 * 2 * 64 * 2 + 64 * 64 * 2
    assert runs.sums == 0
    shared = weight_grad(STRIP, splits=4)
    assert (shared.programs, shared.sums) == (4, 4 * 3 * 64 * 64)
    assert shared.program.l2 == 2 * 128 * 18 * 64 * 2 + 3 * 64 * 64 * 4  # in fp32
    # The launchers' number: no more shares than steps of 32 runs; three steps of 64 positions each.
    assert weight_grad(STRIP).programs == 8 * 128 // 32
    assert weight_grad(TAPS).programs == 3 * -(-128 // 3)


def test_pairs_of_strips_share_what_they_load():
    # Four strips for two output blocks: at most three groups, if those that are unused count.
    narrow = STRIP._replace(block=(32, 32), slots=12)
    work = weight_grad(narrow, splits=1)
    assert work.programs == 3
    assert work.program.l2 == pytest.approx(
        8 * 128 * 32 * 2 * (10 * 4 / 3 + 8) + 12 * 32 * 32 * 2 / 3
    )
    # Each multiplies two strips, and puts zeros into shared memory for one that is not there.
    assert work.program.flops == 8 * 128 * 48 * 2 * 32 * 32
    assert work.program.shared == 3 * 8 * 128 * 32 * 2 * 28
    assert work.present == pytest.approx(4 / 6)
    assert roofline.stored_shares([narrow]) == pytest.approx([1, 1, 1])


def test_what_is_multiplied_and_not_stored():
    strided = TAPS._replace(stride=2)
    work = gather(strided, transposed=True)
    assert roofline.multiplied([work]) == 4 * strided.useful
    assert work.program.l2 == 3 * 2 * (128 // 4 * 64 + 64 * 64) + 2 * 128 * 64
    ragged = Layer((64, 48), (3, 3), (8, 7), 128, (64, 32), 3, strips=True)
    # 48 channels in blocks of 32, and runs of 4 or 8 in rows of 7 pixels.
    share = 48 / 64 * 7 / 8
    assert roofline.stored_shares([ragged])[0] == pytest.approx(share)


def test_the_slowest_part_decides_in_whole_waves():
    assert [waves.whole_waves(count) for count in (1, 132, 133)] == [132, 132, 264]
    work = gather(STRIP, transposed=False)
    through_l2 = 132 * work.program.l2 / H200.l2
    assert waves.seconds(work, H200) == pytest.approx(through_l2)
    assert waves.seconds(work, H200._replace(l2=1e15)) == pytest.approx(
        132 * work.program.shared / (H200.tensor / 32)
    )
    assert waves.seconds(work, H200._replace(memory=1e9)) == work.memory / 1e9
    added = work._replace(sums=H200.l2 / 4)
    assert waves.seconds(added, H200) == pytest.approx(1 + through_l2)
    # N = 32 at two thirds of the rate: 3 KB of operands in the time of 2.
    assert programs.operands(64, 32, 16) / 128 == 1.5 * (2 * 64 * 32 * 16 / 4096)


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("channels", [64, 320, 640])
def test_the_launchers_number_of_shares_is_about_the_fastest(channels, strips):
    # Below 10 us they look at more than this model does: what it takes until loads arrive.
    for block in ((32, 32), (64, 64)):
        layer = Shape((channels, channels, 3, 3), (32, 32), 1).sparse(block, 0.2, strips, 128)
        times = [waves.seconds(weight_grad(layer, splits), H200) for splits in range(1, 200)]
        assert waves.seconds(weight_grad(layer), H200) <= 1.1 * min(times)


def test_a_step_is_its_passes_and_the_rest():
    first = Shape((64, 64, 3, 3), (8, 8), 1).sparse((64, 64), 0.3, True, 128)
    assert first == STRIP
    moved, weights = 4.8e9, 2 * 3 * 64 * 64
    works = [*roofline.passes(first, fused=True)] * 2
    del works[1]
    expected = sum(waves.seconds(work, H200) for work in works) + 1e-3
    expected += 2 * roofline.KERNELS * roofline.LAUNCH + weights * 20 / 4.8e12
    assert roofline.step([first, first], H200, moved) == pytest.approx(expected)


def test_rows_of_a_network(monkeypatch):
    monkeypatch.setattr(roofline, "NETWORKS", {"tiny": TINY})
    monkeypatch.setattr(roofline, "rest", lambda network: Rest(1e6, 1e6))
    rows = list(roofline.rows(Namespace(networks=["tiny"])))
    assert {len(row) for row in rows} == {len(roofline.COLUMNS)}
    names = [row[0] for row in rows]
    assert names[0] == "3 -> 16 at 8x8"
    assert "64 -> 128 at 2x2" not in names  # that has a stride
    assert names.count("**tiny: step**") == len(roofline.BLOCKS)
