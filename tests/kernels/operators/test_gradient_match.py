"""Which combination of dense gradients a gradient at the active blocks is."""

import pytest
import torch

from sparse_kernels.operators.gradient_match import matching

INF, NAN = float("inf"), float("nan")


def restrict(dense):
    return dense[:, :3]


def gradients(count=3, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(8, 6, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("factors", [(1, 1, 1), (0.3, 0, -2), (0, 0, 1), (5e-8, 1e-8, 0)])
def test_a_combination_is_found(factors, dtype):
    dense = gradients(dtype=dtype)
    wanted = sum(f * d for f, d in zip(factors, dense))
    found = matching(restrict(wanted), dense, restrict)
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    largest = wanted.abs().max()
    torch.testing.assert_close(found / largest, wanted / largest, **tolerance)
    assert found.dtype == dtype


def test_equal_gradients_are_told_apart_by_their_sum():
    (dense,) = gradients(1)
    found = matching(restrict(3 * dense), [dense.clone(), dense.clone()], restrict)
    torch.testing.assert_close(found, 3 * dense)


@pytest.mark.parametrize("odd", [0.5, INF, NAN])
def test_their_sum_where_no_combination_is_near(odd):
    """A mean over processes, noise, or a step that overflowed."""
    dense = gradients(2)
    wanted = dense[0] + dense[1]
    target = restrict(wanted).clone()
    target[0, 0] += 10 * odd
    assert matching(target, dense, restrict).equal(wanted)


@pytest.mark.parametrize("odd", [1.0, INF, NAN])
def test_zero_where_the_target_is(odd):
    dense = gradients(2)
    dense[0][0, 0], dense[1][1, 5] = odd, odd
    assert not matching(torch.zeros(8, 3), dense, restrict).any()


def test_infinities_stay_where_they_count():
    dense = gradients(1)
    dense[0][0, 0], dense[0][1, 5] = INF, NAN
    found = matching(restrict(dense[0]).clone(), [dense[0].clone()], restrict)
    torch.testing.assert_close(found, dense[0], equal_nan=True)


@pytest.mark.parametrize("factor", [0, 0.5])
def test_one_of_which_the_active_blocks_tell_nothing_counts_whole(factor):
    silent, dense = gradients(2)
    silent[:, :3] = 0
    wanted = silent + factor * dense
    torch.testing.assert_close(matching(restrict(wanted), [silent, dense], restrict), wanted)
