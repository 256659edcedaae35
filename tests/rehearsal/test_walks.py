"""Training steps on GPUs that are not there: what is launched, compiled, copied and waited for.

Each walk takes training steps and a topology update in a process of its own (helpers/fake_gpu). The
number of kernels has a limit, which may fall and not rise: `python -m fake_gpu.limits` writes it.
"""

import json
from pathlib import Path

import pytest
from fake_gpu.covering import CHOICES, covering
from fake_gpu.limits import FEW, kernels, name, taken
from fake_gpu.walk import Walk

LIMITS = json.loads(Path(__file__).with_name("kernels_a_step.json").read_text())
KERNELS_A_LAYER = 7


def check(found: dict) -> None:
    walk = Walk(**found["walk"])
    assert found["failed"] == [], walk
    assert found["waits"] == [], walk
    assert found["copies"] == [], walk
    assert found["moved"] == [], walk
    assert "unknown" not in found["masked"].values(), walk
    if walk.backend == "triton":
        assert found["masked"] == {}, walk
    limits, layers = LIMITS[name(walk)]
    assert found["layers"] == layers, walk
    assert all(n <= most for n, most in zip(kernels(found), limits)), walk
    # Index lists are sorted in updates alone.
    assert not {"sort", "searchsorted", "topk"} & set(found["step"]), walk


@pytest.mark.parametrize(
    "walk", [FEW[0], *(pytest.param(w, marks=pytest.mark.slow) for w in FEW[1:])], ids=name
)
def test_few_walks(walk):
    (found,) = taken([walk])
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("arch", CHOICES["arch"])
def test_all_pairs_of_settings(arch):
    for found in taken(walk for walk in covering() if walk.arch == arch):
        check(found)


def test_the_choice_of_walks_is_small_and_covers_what_it_should():
    walks = covering()
    assert len(walks) <= 40
    assert {(w.network, w.setup) for w in walks} >= {("wrn28-10", "fused"), ("vgg16", "grouped")}
    assert {name(walk) for walk in (*FEW, *walks)} == set(LIMITS)


@pytest.mark.slow
def test_a_fused_layer_takes_seven_kernels():
    # So sparse that all layers run on the kernels.
    walks = [Walk(network="wrn34-10", sparsity=0.9), Walk(sparsity=0.9)]
    deep, usual = (kernels(f)[0] for f in taken(walks))
    assert (deep - usual) / 6 <= KERNELS_A_LAYER
