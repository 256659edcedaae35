"""What `make bench-gpu` measures, the most important rows first.

The first five groups, estimated honestly, fit into 300 seconds: is it right, the dense baselines,
the steps that matter, and their layers. A second call with the same --out does what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.ensemble import DENSE as DENSE_PREDICTION
from bench.ensemble import Ensembles
from bench.gpu.gpu_tests import run_tests
from bench.kernels import LAYERS, Kernels
from bench.kernels import TINY as TINY_LAYERS
from bench.report.records import Records
from bench.speed.jobs import Job
from bench.speed.networks import NETWORKS, TINY, Network
from bench.speed.smoke import smoke
from bench.speed.variant import Case
from bench.training import Training
from sparse_engine.layers.blocks import parse_block
from sparse_kernels.dispatch.cost_model import break_even_density

HEADLINE = (0.8, 0.9)
FUSED, FORCED = "auto rows fuse captured", "triton rows fuse captured"
BEST = (FUSED, "auto rows captured")
BASELINES = ("dense captured", "dense compiled captured")
OTHERS = ("resnet18", "torchvision/resnet50", "vit-layer", "vgg16", "mlp-4096")
GENERATION = 90  # whose break-even densities say what `auto` would run dense
# From the start of the command to the first job: processes, imports, the GPU's context.
START_SECONDS = 8.0
SMOKE_SECONDS, TEST_SECONDS = 30.0, 30.0
# The dense library's search among its algorithms, in the first network.
SEARCH_SECONDS = 4.0
# Compilation for the first fused network, and for the next one with other blocks.
KERNEL_SECONDS, MORE_KERNEL_SECONDS = 10.0, 5.0


def jobs(records: Records, device: str, tiny: bool = False) -> list[Job]:
    """Return all jobs, each once."""
    if tiny:
        return _tiny(records, device)
    found: dict[str, Job] = {}
    for group in groups(records, device):
        for job in group:
            found.setdefault(job.name, job)
    return list(found.values())


def groups(records: Records, device: str) -> list[list[Job]]:
    """Return a GPU's jobs in groups, one thing a group; the first five are the headline."""
    plan = _Plan(records, device)
    return [
        [Job("smoke", SMOKE_SECONDS, lambda: smoke(device))],
        [Job("GPU tests", TEST_SECONDS, run_tests)],
        plan.dense(),
        plan.headline(),
        plan.layers(("rows",)),
        plan.updates(),
        *plan.rest(),
    ]


def _tiny(records: Records, device: str) -> list[Job]:
    case = Case(TINY.on(device), 0.8, "uniform", "16x16")
    training = Training(records, device, 2)
    captured = []
    if device == "cuda":
        captured = training.jobs(case.dense(), BASELINES[:1]) + training.jobs(case, [FORCED])
    return [
        Job("smoke", SMOKE_SECONDS, lambda: smoke(device, tiny=True)),
        *captured,
        *training.jobs(case, ["auto"]),
        *Ensembles(records, device, 2).jobs(case, ["auto"]),
        Kernels(records, device).job(TINY_LAYERS[-1], (32, 32), 0.5),
    ]


class _Plan:
    def __init__(self, records: Records, device: str) -> None:
        self.training, self.ensembles = Training(records, device, 2), Ensembles(records, device, 2)
        self.kernels = Kernels(records, device)
        self.wide = NETWORKS["wrn28-10"]

    def dense(self) -> list[Job]:
        """Return the baselines of the headline."""
        return _longer(self._dense(self.wide, BASELINES), SEARCH_SECONDS)

    def headline(self) -> list[Job]:
        """Return the steps that matter, and those that break-even densities keep `auto` from."""
        found = []
        for block in ("64x64", "32x32", "auto"):
            cases = [Case(self.wide, sparsity, "uniform", block) for sparsity in HEADLINE]
            steps = [job for case in cases for job in self.training.jobs(case, _contenders(case))]
            found += _longer(steps, MORE_KERNEL_SECONDS if found else KERNEL_SECONDS)
        return found

    def layers(self, orders: Sequence[str]) -> list[Job]:
        """Return the passes of the wide network's layers."""
        return [
            self.kernels.job(layer, block, density, orders)
            for density in (0.2, 0.1)
            for block in ((64, 64), (32, 32))
            for layer in LAYERS
            if layer.image
        ]

    def updates(self) -> list[Job]:
        """Return the phases of a step and of a topology update, which is timed with `auto rows`."""
        return self._dense(self.wide, ("dense",)) + self._steps(("auto rows",), sparsities=(0.8,))

    def rest(self) -> list[list[Job]]:
        """Return everything else."""
        linear = [layer for layer in LAYERS if not layer.image]
        images = [layer for layer in LAYERS if layer.image]
        large = [self.kernels.job(layer, (128, 128), d) for d in (0.2, 0.1) for layer in images]
        peers = [
            self.kernels.job(layer, (128, 128), d) for layer in linear for d in (0.2, 0.1, 0.5)
        ]
        first, *others = [self._other(name) for name in OTHERS]
        more = [self._steps(BEST, block) for block in ("128x128", "16x16")]
        more += [self._steps(BEST, block, sparsities=(0.5, 0.95)) for block in ("32x32", "64x64")]
        return [
            self._steps(BEST, distribution="erk", block="auto"),
            self._steps(("triton rows captured",), "auto"),
            self._steps(("triton rows captured",), "32x32"),
            self._steps(("mask-multiply",), sparsities=(0.8,)),
            self._predictions(),
            first,
            peers,
            *others,
            large,
            self.layers(("channels_last",)),
            *more,
            self._steps(("masked", "auto", "auto rows compiled"), sparsities=(0.8,)),
        ]

    def _steps(
        self,
        contenders: Sequence[str],
        block: str = "64x64",
        distribution: str = "uniform",
        sparsities: Sequence[float] = HEADLINE,
    ) -> list[Job]:
        cases = [Case(self.wide, sparsity, distribution, block) for sparsity in sparsities]
        return [job for case in cases for job in self.training.jobs(case, contenders)]

    def _dense(self, network: Network, contenders: Sequence[str]) -> list[Job]:
        return self.training.jobs(Case(network), contenders)

    def _other(self, name: str) -> list[Job]:
        network = NETWORKS[name]
        cases = [Case(network, sparsity, "uniform", "64x64") for sparsity in (0.9, 0.8)]
        steps = [job for case in cases for job in self.training.jobs(case, BEST)]
        return self._dense(network, BASELINES) + steps

    def _predictions(self) -> list[Job]:
        cases = [Case(self.wide, sparsity, "uniform", "auto") for sparsity in HEADLINE]
        names = ("auto rows captured", "auto rows grouped captured")
        tickets = [job for case in cases for job in self.ensembles.jobs(case, names)]
        return self.ensembles.jobs(Case(self.wide), DENSE_PREDICTION[:2]) + tickets


def _contenders(case: Case) -> tuple[str, ...]:
    """Return the best ways to run a case, and the kernels where `auto` would run it dense."""
    fused, plain = BEST
    block = parse_block(case.block)
    dense = block == "auto" or 1 - case.sparsity > break_even_density(GENERATION, block)
    return (fused, FORCED, plain) if dense else (fused, plain)


def _longer(group: list[Job], seconds: float) -> list[Job]:
    """Return jobs of which the first takes more time."""
    first, rest = group[:1], group[1:]
    return [replace(job, seconds=job.seconds + seconds) for job in first] + rest
