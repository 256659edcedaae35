"""A row of a network's steps for each size of blocks and sparsity, or why there is none."""

from argparse import Namespace

from bench.dev import cpu_steps
from bench.speed.networks import TINY


def test_a_row_has_a_ratio_for_every_path(monkeypatch):
    monkeypatch.setattr(cpu_steps, "TIMED", {"tiny": TINY})
    options = Namespace(
        networks=["tiny"], blocks=[16], sparsities=[0.5, 0.999], distribution="uniform", rounds=1
    )
    timed, refused = cpu_steps.rows(options)
    assert len(timed) == len(cpu_steps.COLUMNS)
    assert timed[:3] == ["tiny", "0.5", "16"]
    assert refused[3].startswith("no row: ")
