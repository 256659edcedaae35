"""A run keeps what was measured when it began, whatever is measured later."""

import json

import pytest
import torch

from sparse_kernels.cpu import library
from sparse_kernels.dispatch.backend import BackendError, choose_backend, forced_backend
from sparse_kernels.dispatch.cost_model import kept_limits, limit_key
from sparse_kernels.dispatch.kernel_choices import kernel_choices, with_kernel_choices

CPU = torch.device("cpu")
SIZES = (64, 64, 3, 3, 16, 16)


pytestmark = pytest.mark.usefixtures("own_cache")


def measure(limit):
    threads = torch.get_num_threads()
    kept_limits().add({limit_key(torch.float32, SIZES, 256, threads): [limit]})


def choice(density):
    return choose_backend(CPU, torch.float32, SIZES, density, 256)


def test_what_was_picked_stays_until_the_end():
    measure(0.9)
    kept = json.loads(json.dumps(kernel_choices(CPU)))
    measure(0.1)
    assert choice(0.5) == "masked"
    with with_kernel_choices(CPU, kept):
        assert choice(0.5) == "native"
        assert kernel_choices(CPU) == kept
    assert choice(0.5) == "masked"


def test_what_was_measured_since_is_left_out():
    kept, expected = kernel_choices(CPU), choice(0.9)
    measure(0.99)
    assert expected == "masked"
    assert choice(0.9) == "native"
    with with_kernel_choices(CPU, kept):
        assert choice(0.9) == expected


def test_other_hardware_says_nothing():
    measure(0.99)
    with with_kernel_choices(CPU, {"native-limits-other-torch1.json": {"key": [0.0]}}):
        assert choice(0.9) == "native"


def test_a_run_goes_on_with_the_kernels_that_it_began_with(monkeypatch):
    measure(0.99)
    built = kernel_choices(CPU)
    monkeypatch.setattr(library, "_found", library._Found(None, "there is no compiler"))
    not_built = kernel_choices(CPU)
    with pytest.raises(BackendError, match="there is no compiler; mend that, or take --backend"):
        with_kernel_choices(CPU, built).__enter__()
    with forced_backend("masked"), with_kernel_choices(CPU, built):
        assert choice(0.5) == "masked"
        assert built.keys() - kernel_choices(CPU).keys() == {"native"}
    monkeypatch.undo()
    assert choice(0.5) == "native"
    with with_kernel_choices(CPU, not_built):
        assert choice(0.5) == "masked"
        with forced_backend("native"):
            assert choice(0.5) == "native"
    assert choice(0.5) == "native"


@pytest.mark.parametrize(
    "limits", [[], {"key": 1}, {"key": []}, {"key": ["x"]}, {"key": [1, 2]}, 3]
)
def test_anything_else_changes_nothing(limits):
    measure(0.99)
    before = kernel_choices(CPU)
    damaged = with_kernel_choices(CPU, dict.fromkeys(before, limits))
    with pytest.raises((TypeError, ValueError, AttributeError)), damaged:
        pass
    assert kernel_choices(CPU) == before
