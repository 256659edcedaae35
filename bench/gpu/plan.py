"""What `make bench-gpu` measures, the most important rows first.

The first five groups, estimated honestly, fit into 300 seconds: is it right, the dense baselines,
the steps that matter, and their layers. A second call with the same --out does what is left.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from bench.ensemble import DENSE_ON_GPU as DENSE_PREDICTIONS
from bench.ensemble import Ensembles
from bench.gpu.gpu_tests import run_tests
from bench.kernels import LAYERS, ORDERS, Kernels
from bench.kernels import TINY as TINY_LAYERS
from bench.report.records import Records
from bench.speed.jobs import Job
from bench.speed.networks import NETWORKS, TINY, Network
from bench.speed.problems import Layer
from bench.speed.smoke import smoke
from bench.speed.variant import Case, Variant, variants
from bench.training import Training
from sparse_engine.layers.blocks import parse_block
from sparse_kernels.dispatch.cost_model import break_even_density

HEADLINE = (0.8, 0.9)
BEST = FUSED, PLAIN = variants("auto rows fuse captured", "auto rows captured")
FORCED = Variant.parse("triton rows fuse captured")
BASELINES = variants("dense captured", "dense compiled captured")
WIDE = NETWORKS["wrn28-10"]
OTHERS = [
    NETWORKS[name]
    for name in ("resnet18", "torchvision/resnet50", "vit-layer", "vgg16", "mlp-4096")
]
IMAGE_LAYERS = [layer for layer in LAYERS if layer.image]
LINEAR_LAYERS = [layer for layer in LAYERS if not layer.image]
STRIPS = [replace(layer, name=f"{layer.name}, strips", taps="row") for layer in IMAGE_LAYERS]
# Those whose steps are predicted (docs/performance.md), WRN-28-10 besides.
PREDICTED = [NETWORKS[name] for name in ("resnet18", "torchvision/resnet50", "vgg16")]
GENERATION = 90  # whose break-even densities say what `auto` would run dense
SMOKE_SECONDS, TEST_SECONDS = 30.0, 30.0
# The dense library's search among its algorithms, in the first network.
SEARCH_SECONDS = 4.0
# Compilation for the first fused network, and for the next one with other blocks.
KERNEL_SECONDS, MORE_KERNEL_SECONDS = 10.0, 5.0


def jobs(records: Records, device: str, tiny: bool = False) -> list[Job]:
    """Return all jobs, each once; those of a GPU in groups, the first five of them the headline."""
    if tiny:
        return _tiny(records, device)
    plan = _Plan(records, device)
    groups = [
        [Job("smoke", SMOKE_SECONDS, lambda: smoke(device))],
        [Job("GPU tests", TEST_SECONDS, run_tests)],
        _longer(plan.dense(WIDE), SEARCH_SECONDS),
        plan.headline(),
        plan.layers(IMAGE_LAYERS, ((64, 64), (32, 32)), orders=("rows",)),
        # The phases of a step and of a topology update.
        plan.dense(WIDE, variants("dense")) + plan.steps(variants("auto rows"), sparsities=(0.8,)),
        *plan.rest(),
    ]
    return list({job.name: job for group in groups for job in group}.values())


def _tiny(records: Records, device: str) -> list[Job]:
    case, auto = Case(TINY.on(device), 0.8, "uniform", "16x16"), variants("auto")
    training, captured = Training(records, device, 2), []
    if device == "cuda":
        captured = training.jobs(case.dense(), BASELINES[:1]) + training.jobs(case, [FORCED])
    return [
        Job("smoke", SMOKE_SECONDS, lambda: smoke(device, tiny=True)),
        *captured,
        *training.jobs(case, auto),
        *Ensembles(records, device, 2).jobs(case, auto),
        Kernels(records, device).job(TINY_LAYERS[-1], (32, 32), 0.5),
    ]


class _Plan:
    def __init__(self, records: Records, device: str) -> None:
        self.training, self.ensembles = Training(records, device, 2), Ensembles(records, device, 2)
        self.kernels = Kernels(records, device)

    def headline(self) -> list[Job]:
        """Return the steps that matter, and those that break-even densities keep `auto` from."""
        jobs: list[Job] = []
        for block in ("64x64", "32x32", "auto"):
            cases = [Case(WIDE, sparsity, "uniform", block) for sparsity in HEADLINE]
            steps = [job for case in cases for job in self.training.jobs(case, _best(case))]
            jobs += _longer(steps, MORE_KERNEL_SECONDS if jobs else KERNEL_SECONDS)
        return jobs

    def rest(self) -> list[list[Job]]:
        """Return everything else."""
        first, *others = [
            self.dense(network) + self.steps(BEST, sparsities=(0.9, 0.8), network=network)
            for network in OTHERS
        ]
        triton, large = variants("triton rows captured"), ((128, 128),)
        return [
            self.layers(STRIPS, ((64, 64), (32, 32)), orders=("rows",)),
            self.predicted(WIDE),
            self.steps(BEST, "auto", distribution="erk"),
            self.steps(triton, "auto"),
            self.steps(triton, "32x32"),
            self.steps(variants("mask-multiply"), sparsities=(0.8,)),
            self._predictions(),
            first,
            self.layers(LINEAR_LAYERS, large, (0.2, 0.1, 0.5)),
            *others,
            self.layers(IMAGE_LAYERS, large),
            self.layers(IMAGE_LAYERS, ((64, 64), (32, 32)), orders=("channels_last",)),
            self.steps(BEST, "128x128"),
            self.steps(BEST, "16x16"),
            self.steps(BEST, "32x32", sparsities=(0.5, 0.95)),
            self.steps(BEST, "64x64", sparsities=(0.5, 0.95)),
            self.steps(variants("masked", "auto", "auto rows compiled"), sparsities=(0.8,)),
            *map(self.predicted, PREDICTED),
        ]

    def predicted(self, network: Network) -> list[Job]:
        """Return the steps that bench.dev.roofline predicts: all on kernels, taps and strips."""
        choices = itertools.product(("64x64", "32x32"), HEADLINE, ("each", "row"))
        cases = [Case(network, s, block=block, taps=taps) for block, s, taps in choices]
        return [job for case in cases for job in self.training.jobs(case, [FORCED])]

    def layers(
        self,
        layers: Sequence[Layer],
        blocks: Sequence[tuple[int, int]],
        densities: Sequence[float] = (0.2, 0.1),
        orders: Sequence[str] = ORDERS,
    ) -> list[Job]:
        """Return the passes of single layers."""
        choices = itertools.product(densities, blocks, layers)
        return [self.kernels.job(layer, block, d, orders) for d, block, layer in choices]

    def dense(self, network: Network, chosen: Sequence[Variant] = BASELINES) -> list[Job]:
        """Return a network's dense steps."""
        return self.training.jobs(Case(network), chosen)

    def steps(
        self,
        chosen: Sequence[Variant],
        block: str = "64x64",
        distribution: str = "uniform",
        sparsities: Sequence[float] = HEADLINE,
        network: Network = WIDE,
    ) -> list[Job]:
        """Return a network's sparse steps."""
        cases = [Case(network, sparsity, distribution, block) for sparsity in sparsities]
        return [job for case in cases for job in self.training.jobs(case, chosen)]

    def _predictions(self) -> list[Job]:
        cases = [Case(WIDE, sparsity, "uniform", "auto") for sparsity in HEADLINE]
        chosen = variants("auto rows captured", "auto rows grouped captured")
        tickets = [job for case in cases for job in self.ensembles.jobs(case, chosen)]
        return self.ensembles.jobs(Case(WIDE), DENSE_PREDICTIONS[:2]) + tickets


def _best(case: Case) -> tuple[Variant, ...]:
    """Return the best ways to run a case, and the kernels where `auto` would run it dense."""
    block = parse_block(case.block)
    dense = block == "auto" or 1 - case.sparsity > break_even_density(GENERATION, block)
    return (FUSED, FORCED, PLAIN) if dense else BEST


def _longer(group: list[Job], seconds: float) -> list[Job]:
    """Return jobs of which the first takes more time."""
    first, *rest = group
    return [replace(first, seconds=first.seconds + seconds), *rest]
