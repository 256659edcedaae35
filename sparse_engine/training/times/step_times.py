"""Seconds of a run's training step and of the dense network's, timed in turn in this process.

Both networks are fresh, and see random images of the run's size. The run's network has every
layer's density on average over the run, since training time grows with density, and the loss of the
run's longest phase, the teacher's pass included. Left out are the steps that collect dense
gradients, and topology updates.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.methods.independent import is_grouped
from sparse_engine.methods.losses import CROSS_ENTROPY, Given, Loss
from sparse_engine.methods.phase import Phase
from sparse_engine.models.catalog import narrower
from sparse_engine.runs.model import dense_model
from sparse_engine.runs.teacher import Teacher
from sparse_engine.training.costs import Densities, mean_densities
from sparse_engine.training.finite import FiniteGuard
from sparse_engine.training.network import Network, build_network, plan_network
from sparse_engine.training.step import TrainingStep
from sparse_kernels.timing import CoreWait, medians_in_turn, rounds_within

Step: TypeAlias = Callable[[], None]
SoftLabels: TypeAlias = Callable[[Tensor, float], Tensor]
# What the rounds after the first may take, and how many there are at most.
SECONDS, MOST = 4.0, 9
# Settings of a network with all its weights, as --method dense has them.
DENSE: dict[str, Any] = {
    **{"method": "dense", "sparsity": None, "start_sparsity": None, "topology": None},
    **{"densities": None, "start": "random", "members": 1},
}


@dataclass(frozen=True)
class StepTimes:
    """Median seconds of a training step.

    seconds: of the run's network; dense: of the same network with all its weights.
    narrow: of a dense network so narrow that it should take as long; None where the model has no
        such width. narrow_model is its name.
    rounds: in which each took one step.
    core_wait: of torch's threads meanwhile, see sparse_kernels/timing.py.
    """

    seconds: float
    dense: float
    rounds: int
    core_wait: float
    narrow_model: str | None = None
    narrow: float | None = None

    def result(self, config: Config) -> dict[str, Any]:
        """Return what a run's JSON line has of them.

        train_time_ratio is of the whole run to a dense one of config.dense_epochs.
        """
        ratio = self.seconds / self.dense
        return {
            "seconds_per_step": self.seconds,
            "dense_seconds_per_step": self.dense,
            "time_ratio": ratio,
            "train_time_ratio": ratio * config.epochs / config.dense_epochs,
            "narrow_model": self.narrow_model,
            "narrow_seconds_per_step": self.narrow,
            "core_wait": self.core_wait,
        }


def step_times(
    config: Config,
    info: DatasetInfo,
    device: torch.device,
    phases: Sequence[Phase],
    densities: Densities,
    teacher: Teacher | None = None,
) -> StepTimes:
    """Time the steps of a run and of the dense networks that it is compared with.

    Args:
        config: resolved, of a run that `is_comparable`.
        info: of the data set.
        device: where to time; a CPU with torch's present number of threads.
        phases: of build_phases.
        densities: that the run had.
        teacher: of methods that learn from one.
    """
    loss = max(phases, key=lambda phase: phase.steps).loss
    soft = teacher.probabilities if teacher else None
    at_mean, dense = at_mean_density(config, info, phases, densities), replace(config, **DENSE)
    steps = [
        _fresh_step(at_mean, info, device, loss=loss, soft=soft),
        _fresh_step(dense, info, device),
    ]
    on_gpu = device.type == "cuda"
    ours, theirs = medians_in_turn(steps, 1, on_gpu)
    narrow = narrower(config.model, ours / theirs)
    if narrow is not None:
        steps.append(_fresh_step(replace(dense, model=narrow), info, device))
    rounds = rounds_within(SECONDS, ours + theirs, MOST)
    wait = CoreWait(on_gpu)
    ours, theirs, *third = medians_in_turn(steps, rounds, on_gpu)
    return StepTimes(ours, theirs, rounds, wait.share(), narrow, *third)


def is_comparable(config: Config, processes: int) -> bool:
    """Return whether the steps of a run are those of one sparse network in one process."""
    sparse = config.method != "dense" and not config.no_compare
    return sparse and processes == 1 and not is_grouped(config) and config.parallel != "members"


def at_mean_density(
    config: Config, info: DatasetInfo, phases: Sequence[Phase], densities: Densities
) -> Config:
    """Return a run's settings with the densities that its layers had on average over its steps."""
    with torch.device("meta"):
        model = dense_model(config, info)
    plans = plan_network(config, model, sparsity=0.0)
    total, steps = defaultdict(float), sum(phase.steps for phase in phases)
    for phase, layers in zip(phases, mean_densities(config, model, phases, densities)):
        for plan in plans:
            total[plan.name] += phase.steps / steps * layers.get(plan.name, 1.0)
    # Without what adding shares has rounded: a dense layer is dense.
    means = {name: min(1.0, round(density, 12)) for name, density in total.items()}
    kept = sum(p.weights * means[p.name] for p in plans) / sum(p.weights for p in plans)
    return replace(
        config,
        **{"densities": means, "sparsity": 1 - kept, "start_sparsity": None, "erk_power": 1.0},
        **{"start": "random", "topology": "static"},
    )


def _fresh_step(config: Config, info: DatasetInfo, device: torch.device, **of: Any) -> Step:
    """Return a step of a fresh network of a run; further arguments as of random_step."""
    return random_step(build_network(config, info, device), config, info, config.batch_size, **of)


def updating_step(network: Network, step: Step, drop: float) -> Step:
    """Return a network's step after which its topology is updated; `drop` is the share replaced."""

    def updating() -> None:
        network.topology.arm()
        step()
        network.topology.update(drop)

    return updating


def random_step(
    network: Network,
    config: Config,
    info: DatasetInfo,
    images: int,
    loss: Loss = CROSS_ENTROPY,
    soft: SoftLabels | None = None,
) -> Step:
    """Return a network's training step on `images` random images; on a GPU captured.

    soft: of a teacher, see Given.
    """
    device = network.rate.device
    x = torch.randn(images, info.channels, info.height, info.width, device=device)
    x = x.to(memory_format=torch.channels_last)
    y = torch.randint(info.classes, (images,), device=device)
    network.model.train()

    def of_batch(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, labels, Given(x, config.label_smoothing or 0.0, soft))

    guard = FiniteGuard(device, config.dtype == "fp16", config.skip_nonfinite)
    graph = device.type == "cuda" and config.cuda_graph != "off"
    step = TrainingStep(network, of_batch, guard, config.dtype, graph, config.compile)
    return partial(step, x, y)
