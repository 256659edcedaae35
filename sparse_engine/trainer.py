"""The training loop: it runs any list of phases, and every method is such a list."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparse_engine.checkpoint_schedule import CheckpointSchedule
from sparse_engine.config import Config
from sparse_engine.costs import Densities
from sparse_engine.data.arrays import DataSet
from sparse_engine.data.loader import split_validation
from sparse_engine.downsampling import is_downsampled, some_smaller
from sparse_engine.errors import RunFailure, Stopped
from sparse_engine.evaluation import batches, predict, training_loader
from sparse_engine.finite import FiniteGuard, diagnose, first_bad_layer
from sparse_engine.metrics import accuracy, negative_log_likelihood
from sparse_engine.network import Network, build_network, member_seed
from sparse_engine.phases import Phase
from sparse_engine.recut import saved_densities, without_unused_slots
from sparse_engine.run_folder import RunFolder
from sparse_engine.starts import start_batches
from sparse_engine.step import TrainingStep
from sparse_engine.stopping import StopSignals
from sparse_engine.teacher import Teacher
from sparse_engine.trainer_state import Progress, state_of


class Trainer:
    """Runs the phases of one configuration, epoch by epoch, with a checkpoint after each."""

    def __init__(
        self,
        config: Config,
        phases: Sequence[Phase],
        data: DataSet,
        folder: RunFolder,
        device: torch.device,
        teacher: Teacher | None = None,
    ) -> None:
        """Prepare a run from its start; trainer_state.restore continues one.

        Args:
            config: resolved.
            phases: of build_phases.
            data: its test split is never used to choose anything.
            folder: receives checkpoints, tickets and metrics.csv.
            device: where to train.
            teacher: of methods that learn from one.
        """
        self.config, self.phases, self.data = config, phases, data
        self.folder, self.device, self.teacher = folder, device, teacher
        train, self.split, self.held_out = data.train, "test", data.test
        if config.select == "validation":
            train, self.held_out = split_validation(train, config.validation, config.seed)
            self.split = "validation"
        self.train_split = train
        self.progress = Progress()
        self.best: dict[str, Any] | None = None
        self.kept: dict[str, dict[str, Any]] = {}
        self.densities = Densities()
        self.accuracy = 0.0
        self.guard = FiniteGuard(device, config.dtype == "fp16", config.skip_nonfinite)
        self.schedule = CheckpointSchedule(config.checkpoint_every)
        self._since: float | None = None
        self.network: Network

    def run(self) -> None:
        """Train to the end of the last phase.

        Raises:
            RunFailure: a loss or gradient is not finite; any checkpoint is from before.
            Stopped: a signal came; the checkpoint is of the last step made.
        """
        progress = self.progress
        total = sum(phase.steps for phase in self.phases)
        with (
            tqdm(total=total, initial=progress.step, disable=None, unit="step") as bar,
            StopSignals() as self.signals,
        ):
            while progress.phase < len(self.phases):
                phase = self.phases[progress.phase]
                bar.set_description(phase.name)
                self._begin(phase)
                while progress.begun:
                    self._train_epoch(phase, bar)
                    self._close_epoch(phase, bar)
                    self._stop_if_asked()

    def _begin(self, phase: Phase) -> None:
        """Do what comes before a phase's first step, and prepare its steps."""
        if not self.progress.begun:
            for action in phase.begin:
                action(self)
            self.densities.phases.append(self.network.densities())
            self.progress.begun = True
            if self.progress.step == 0:
                self._save_checkpoint()
        config = self.config
        self.step = TrainingStep(
            self.network,
            partial(phase.loss, self),
            self.guard,
            config.dtype,
            self._uses_graph,
            config.compile,
        )

    def start_member(self, member: int, sparsity: float | None = None) -> None:
        """Go on with a fresh network, whose seed and data order are those of a member."""
        self.progress.member = member
        self.loader = training_loader(
            self.train_split,
            self.data.info,
            self.config.batch_size,
            self.device,
            member_seed(self.config.seed, member),
            self.config.workers,
        )
        start = start_batches(self.config.start, self.loader, self.data.info.classes)
        self.network = build_network(
            self.config, self.data.info, self.device, member, sparsity, start
        )

    def present_state(self) -> dict[str, Any]:
        """Return a copy of the network's state dict, with its accuracy on the held-out split."""
        return {"accuracy": self.accuracy, "model": copy_of(self.network.model.state_dict())}

    def state_of(self, model: nn.Module) -> dict[str, Any]:
        """Return the same of another model."""
        return {"accuracy": accuracy(*self._predict(model)), "model": copy_of(model.state_dict())}

    def save_ticket(self, state: dict[str, Any]) -> None:
        """Write the next member_K.pt."""
        self.progress.tickets += 1
        ticket = without_unused_slots(self.network.model, state["model"])
        self.folder.save_member(self.progress.tickets, ticket)
        self.densities.tickets.append(saved_densities(self.network.model, ticket))
        tqdm.write(
            f"ticket {self.progress.tickets}: {self.split} accuracy {state['accuracy']:.4f} "
            f"after {self.progress.step} steps"
        )

    def training_images(self) -> Iterator[Tensor]:
        """Yield an epoch of training batches [N, C, H, W]: a function of seed and step alone."""
        first = self.progress.step
        for step in range(first, first + self.loader.steps_per_epoch):
            yield self.loader.batch(step)[0].contiguous(memory_format=torch.channels_last)

    @property
    def _uses_graph(self) -> bool:
        return self.device.type == "cuda" and self.config.cuda_graph != "off"

    def _train_epoch(self, phase: Phase, bar: tqdm) -> None:
        """Train to the end of the epoch or of the phase, whichever comes first."""
        progress, self._since = self.progress, time.perf_counter()
        self.network.model.train()
        left = self.loader.steps_per_epoch - progress.step % self.loader.steps_per_epoch
        for remaining in reversed(range(min(left, phase.steps - progress.phase_step))):
            self._train_step(phase)
            progress.step += 1
            progress.phase_step += 1
            bar.update()
            if progress.step % self.guard.window == 0 or not remaining:
                self._check_steps()
            # What closes an epoch writes a checkpoint anyway.
            if remaining and (self.schedule.is_due() or self.signals.received):
                self._check_steps()
                self._save_checkpoint()
                self._stop_if_asked()
        self.mean_loss = self.guard.mean()
        self._count_seconds()
        self._since = None

    def _train_step(self, phase: Phase) -> None:
        network, progress, config = self.network, self.progress, self.config
        number = progress.phase_step + 1
        schedule = phase.update_schedule()
        rate = schedule.rate(number) if schedule else 0.0
        if schedule:
            network.topology.arm_before(schedule, number)
        if phase.ends_with_gradient and number == phase.steps:
            network.topology.arm()
        multiple = phase.learning_rate.at(progress.phase_step, phase.steps)
        network.rate.fill_(config.lr * multiple)
        usual = not is_downsampled(config.downsample_rate, config.seed, progress.step)
        with self._batch(progress.step) as (x, y):
            self.step(x, y, usual)
        if rate:
            network.topology.update(rate, schedule.pruned_share(number))

    @contextmanager
    def _batch(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the images and labels of a step, as the network is to see them."""
        x, y = self.loader.batch(step)
        rate, seed = self.config.downsample_rate, self.config.seed
        with some_smaller(self.network.model, x, rate, seed, step) as x:
            yield x.contiguous(memory_format=torch.channels_last), y

    def _check_steps(self) -> None:
        """Raise RunFailure if a step was not finite and may not be left out."""
        step = self.guard.fatal_step()
        if step is not None:
            with self._batch(step) as (x, y):
                found = diagnose(self.network.model, lambda: self.step.loss(x, y), x)
            self._fail(found.format(step))

    def _fail(self, found: str) -> NoReturn:
        raise RunFailure(f"{found}; any checkpoint is from before; try a lower --lr")

    def _stop_if_asked(self) -> None:
        if self.signals.received:
            raise Stopped(
                f"at step {self.progress.step}; continue with --resume {self.folder.path}",
                self.signals.received,
            )

    def _count_seconds(self) -> None:
        """Add the seconds since the last call, if it is within training steps."""
        if self._since is not None:
            now = time.perf_counter()
            self.progress.train_seconds += now - self._since
            self._since = now

    def _close_epoch(self, phase: Phase, bar: tqdm) -> None:
        """Evaluate, log, end the phase if it is over, and write a checkpoint."""
        progress = self.progress
        probabilities, labels = self._predict(self.network.model)
        self._check_predictions(probabilities)
        found = self.accuracy = accuracy(probabilities, labels)
        bar.set_postfix(loss=f"{self.mean_loss:.3f}", accuracy=f"{found:.4f}")
        is_best = self.best is None or found > self.best["accuracy"]
        if phase.selects and self.split == "validation" and is_best:
            self.best = self.present_state()
        self.folder.add_row(
            {
                "epoch": -(-progress.step // self.loader.steps_per_epoch),
                "step": progress.step,
                "phase": phase.name,
                "learning_rate": f"{float(self.network.rate):.6g}",
                "train_loss": f"{self.mean_loss:.6f}",
                "split": self.split,
                "nll": f"{negative_log_likelihood(probabilities, labels):.6f}",
                "accuracy": f"{found:.6f}",
                "exploration_rate": f"{self.network.topology.exploration_rate():.6f}",
                "train_seconds": f"{progress.train_seconds:.3f}",
            }
        )
        if progress.phase_step == phase.steps:
            for action in phase.end:
                action(self)
            self.best = None
            progress.phase, progress.phase_step, progress.begun = progress.phase + 1, 0, False
        self._save_checkpoint()

    def _check_predictions(self, probabilities: Tensor) -> None:
        """Raise RunFailure if the last update has broken the weights."""
        if not bool(torch.isfinite(probabilities).all()):
            x = self.loader.batch(self.progress.step - 1)[0]
            layer = first_bad_layer(self.network.model.eval(), x)
            self._fail(
                f"predictions are not finite at step {self.progress.step}; "
                f"first layer with such an output: {layer}"
            )

    def _predict(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        size = 2 * self.config.batch_size
        held_out = batches(self.held_out, self.data.info, size, self.device, self.config.workers)
        return predict(model, held_out, self.config.dtype)

    def _save_checkpoint(self) -> None:
        self._count_seconds()
        self.folder.save_checkpoint(state_of(self))
        self.schedule.restart()


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose tensors are no longer the model's."""
    return {name: value.detach().clone() for name, value in state.items()}
