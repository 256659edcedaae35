"""What `make bench-gpu` measures, the most important rows first."""

from __future__ import annotations

import itertools

from bench.contender import Case
from bench.ensemble import DENSE as DENSE_PREDICTION
from bench.ensemble import Ensembles
from bench.jobs import Job
from bench.kernels import LAYERS, Kernels
from bench.kernels import TINY as TINY_LAYERS
from bench.networks import NETWORKS, TINY
from bench.records import Records
from bench.smoke import smoke
from bench.training import DENSE, Training

HEADLINE = (0.8, 0.9)
BEST = ("auto rows fuse captured", "auto rows captured")
OTHERS = ("resnet18", "torchvision/resnet50", "vit-layer", "vgg16", "mlp-4096")
SMOKE_SECONDS = 40.0


def jobs(records: Records, device: str, tiny: bool = False) -> list[Job]:
    """Return all jobs: is it right, the headline, its memory, tickets, layers, the rest, peers."""
    training, ensembles = Training(records, device, 2), Ensembles(records, device, 2)
    kernels = Kernels(records, device)
    first = Job("smoke", SMOKE_SECONDS, lambda: smoke(device))
    if tiny:
        case = Case(TINY.on(device), 0.8, "uniform", "16x16")
        rest = training.jobs(case, ["auto"]) + ensembles.jobs(case, ["auto"])
        return [first, *rest, kernels.job(TINY_LAYERS[-1], (32, 32), 0.5)]
    wide = NETWORKS["wrn28-10"].on(device)

    def steps(contenders, *choices: tuple[str, str], sparsities=HEADLINE) -> list[Job]:
        cases = [Case(wide, s, *choice) for choice in choices for s in sparsities]
        return [job for case in cases for job in training.jobs(case, contenders)]

    dense = training.jobs(Case(wide), DENSE[:3]) if device == "cuda" else []
    headline = steps(BEST, ("uniform", "64x64"), ("uniform", "auto"), ("erk", "auto"))
    # What `auto` would run dense, by predicted break-even densities.
    forced = steps(("triton rows captured",), ("uniform", "auto"), ("uniform", "32x32"))
    phases = steps(("auto rows",), ("uniform", "64x64"), sparsities=(0.8,))
    today = steps(("mask-multiply",), ("uniform", "64x64"), sparsities=(0.8,))
    predictions = ensembles.jobs(Case(wide), DENSE_PREDICTION[:2]) if device == "cuda" else []
    for sparsity in HEADLINE:
        case = Case(wide, sparsity, "uniform", "auto")
        predictions += ensembles.jobs(case, ("auto rows captured", "auto rows grouped captured"))
    layers = [
        kernels.job(layer, block, density)
        for density in (0.2, 0.1)
        for block, layer in itertools.product(((64, 64), (32, 32), (128, 128)), LAYERS)
        if layer.image
    ]
    others = []
    for name in OTHERS:
        network = NETWORKS[name].on(device)
        if device == "cuda":
            others += training.jobs(Case(network), ("dense captured", "dense compiled captured"))
        for sparsity in (0.9, 0.8):
            others += training.jobs(Case(network, sparsity, "uniform", "64x64"), BEST)
    linear = [layer for layer in LAYERS if not layer.image]
    peers = [kernels.job(layer, (128, 128), d) for layer in linear for d in (0.2, 0.1, 0.5)]
    rest = steps(BEST, ("uniform", "32x32"), ("uniform", "64x64"), sparsities=(0.5, 0.95))
    rest += steps(BEST, ("uniform", "32x32"), ("uniform", "128x128"), ("uniform", "16x16"))
    rest += steps(("masked", "auto", "auto rows compiled"), ("uniform", "64x64"), sparsities=(0.8,))
    first_ones = [first, *dense, *headline, *phases, *forced, *today, *predictions]
    return [*first_ones, *layers[:6], *others[:6], *peers, *others[6:], *layers[6:], *rest]
