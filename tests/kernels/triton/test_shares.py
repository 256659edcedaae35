"""In how many shares a weight gradient is summed: by hand, and at the edges."""

import pytest

from sparse_kernels.triton.shares import ADDING, WAIT, count_shares, step_bytes

STEP = 2 * WAIT  # so long that nothing waits


def test_a_step_takes_what_is_slower():
    assert step_bytes(loaded=16_384, flops=144 * 16_384, itemsize=2, exact=False) == 16_384
    assert step_bytes(16_384, 144 * 16_385, 2, False) == 16_385
    assert step_bytes(16_384, 144 * 16_384, 4, False) == 2 * 16_384
    assert step_bytes(16_384, 144 * 16_384, 4, True) == 12 * 16_384


def test_all_processors_work_where_sums_cost_little():
    assert count_shares(programs=1, steps=100, step=STEP, sums=1, processors=10) == 10
    # Three programs of which two shares fill 6 of 10, and 10 shares three waves wholly.
    assert count_shares(3, 1000, STEP, 1, 10) == 10


def test_sums_that_cost_more_than_they_save():
    assert count_shares(1, 2, STEP, sums=10**6, processors=10) == 1
    # 120 of 132 processors work in two shares; 11 would be whole waves, and write much more.
    assert count_shares(60, 64, 40_960, 3 * 64 * 64, 132) == 2


def test_a_kernel_that_adds_shares_takes_time_to_start():
    # The second of two steps is saved, of which a tenth of both must be left.
    assert count_shares(1, 2, ADDING * 6 // 5, 1, 132) == 1
    assert count_shares(1, 2, ADDING * 13 // 10, 1, 132) == 2


def test_short_steps_want_several_programs_a_processor():
    alone = count_shares(1, 10_000, STEP, 1, 10)
    assert (alone, count_shares(1, 10_000, WAIT // 4, 1, 10)) == (10, 40)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_no_more_shares_than_steps(steps):
    assert count_shares(1, steps, 10 * STEP, 1, 132) == max(1, steps)


def test_more_programs_than_processors_still_end_together():
    shares = count_shares(100, 10**6, STEP, 1, 99)
    assert shares > 1
    assert -(-100 * shares // 99) / shares < 1.2
