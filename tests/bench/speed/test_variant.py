"""A variant's name and its fields say the same."""

import pytest

from bench.speed.networks import TINY
from bench.speed.variant import Case, Variant, variants
from sparse_engine.errors import InputError


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("dense", Variant("dense")),
        ("dense bf16 compiled", Variant("dense", bf16=True, compiled=True)),
        ("auto rows fuse captured", Variant("auto", rows=True, fuse=True, captured=True)),
        ("dense compiled captured", Variant("dense", compiled=True, captured=True)),
        ("auto rows grouped captured", Variant("auto", rows=True, grouped=True, captured=True)),
        ("masked vmapped captured", Variant("masked", vmapped=True, captured=True)),
    ],
)
def test_a_name_is_read_as_it_is_written(name, variant):
    assert Variant.parse(name) == variant
    assert str(variant) == name
    assert str(Variant.parse(" ".join([*name.split()[:1], *name.split()[:0:-1]]))) == name


@pytest.mark.parametrize("name", ["", "rows", "auto sideways", "gem"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(InputError, match=f"variant '{name}' is unknown: take one of dense, slim, "):
        variants("auto", name)


def test_the_dense_network_has_no_blocks():
    case = Case(TINY, 0.8, "uniform", "16x16")
    assert str(case) == "wrn10-2 0.8 uniform 16x16"
    assert case.of(Variant("dense", captured=True)) == case.dense() == Case(TINY)
    assert case.of(Variant("mask-multiply")) == case
    assert case.of(Variant("slim")).slim
    backends = [Variant(kind).backend for kind in ("dense", "mask-multiply", "native")]
    assert backends == ["auto", "auto", "native"]
