"""A choice of walks in which every pair of settings that can meet does meet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from fake_gpu.walk import Walk

CHOICES: Mapping[str, Sequence[Any]] = {
    "network": (
        *("wrn28-10", "resnet18", "torchvision/resnet50", "vgg16"),
        *("vit-b-16", "mlp-4096", "wrn10-3"),  # 48, 96 and 192 channels: ragged in blocks of 64
    ),
    "setup": ("plain", "rows", "fused", "grouped"),
    "arch": (80, 90, 120),
    "dtype": ("bf16", "fp16", "fp32", "tf32"),
    "cut": (("uniform", "64x64"), ("erk", "auto"), ("uniform", "32x32"), ("uniform", "auto")),
    "batch": (128, 37),
    "backend": ("auto", "triton"),
}
Pair = tuple[tuple[str, Any], tuple[str, Any]]
WITHOUT_CONVOLUTIONS = ("vit-b-16", "mlp-4096")
# Members of these cannot be one network: what they are made of has no grouped form.
UNGROUPED = ("torchvision/resnet50", "vit-b-16")
TRIES = 60


def covering() -> list[Walk]:
    """Return the walks, the same at every call; rows differ in length by what they still cover."""
    draw = random.Random(0)
    names = list(CHOICES)
    uncovered = {pair for pair in _all_pairs(names) if _possible(dict(pair))}
    chosen: list[dict[str, Any]] = []
    while uncovered:
        best = max(
            (_filled(draw, names, uncovered) for _ in range(TRIES)),
            key=lambda row: len(_pairs(row) & uncovered),
        )
        gained = _pairs(best) & uncovered
        if gained:
            chosen.append(best)
            uncovered -= gained
    return [_walk(row) for row in chosen]


def _filled(draw: random.Random, names: Sequence[str], uncovered: set[Pair]) -> dict[str, Any]:
    """Return a row around one pair that is not covered yet, the rest drawn."""
    pair = draw.choice(sorted(uncovered, key=str))
    while True:
        row = {name: draw.choice(CHOICES[name]) for name in names} | dict(pair)
        if _possible(row):
            return row


def _all_pairs(names: Sequence[str]) -> set[Pair]:
    return {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(CHOICES[a], CHOICES[b])
    }


def _pairs(row: Mapping[str, Any]) -> set[Pair]:
    return set(itertools.combinations(((name, row[name]) for name in CHOICES), 2))


def _possible(row: Mapping[str, Any]) -> bool:
    network, setup = row.get("network"), row.get("setup")
    if network in WITHOUT_CONVOLUTIONS and setup in ("rows", "fused"):
        return False
    return not (network in UNGROUPED and setup == "grouped")


def _walk(row: Mapping[str, Any]) -> Walk:
    distribution, block = row["cut"]
    known = {field.name for field in fields(Walk)}
    settings = {name: value for name, value in row.items() if name in known}
    return Walk(distribution=distribution, block=block, **settings)
