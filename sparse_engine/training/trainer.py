"""The training loop: it runs any list of phases, and every method is such a list."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_engine.config.config import Config
from sparse_engine.data.arrays import DataSet
from sparse_engine.data.splits import choosing_split, training_loader
from sparse_engine.errors import RunFailure, Stopped
from sparse_engine.evaluation.metrics import accuracy, negative_log_likelihood
from sparse_engine.methods.independent import is_grouped
from sparse_engine.methods.losses import Given
from sparse_engine.methods.phase import Phase
from sparse_engine.models.members import training_pair
from sparse_engine.runs.epoch_rows import EpochRow
from sparse_engine.runs.run_folder import RunFolder
from sparse_engine.runs.teacher import Teacher
from sparse_engine.sparsity.saliency import start_batches
from sparse_engine.training.between_phases import BetweenPhases
from sparse_engine.training.costs import Densities
from sparse_engine.training.downsampling import is_downsampled, some_smaller
from sparse_engine.training.finite import FiniteGuard, broken_member, diagnose
from sparse_engine.training.grouped import start_group
from sparse_engine.training.interrupts import CheckpointSchedule, StopSignals
from sparse_engine.training.member_states import Accuracies, BestStates, KeptStates
from sparse_engine.training.network import build_network, member_seed
from sparse_engine.training.processes import ALONE, World
from sparse_engine.training.progress import Progress
from sparse_engine.training.state import state_of
from sparse_engine.training.step import TrainingStep


class Trainer(BetweenPhases):
    """Runs the phases of one configuration, epoch by epoch, with a checkpoint after each."""

    def __init__(
        self,
        config: Config,
        phases: Sequence[Phase],
        data: DataSet,
        folder: RunFolder,
        device: torch.device,
        teacher: Teacher | None = None,
        world: World = ALONE,
    ) -> None:
        """Prepare a run from its start; trainer_state.restore continues one.

        Args:
            config: resolved.
            phases: of build_phases.
            data: its test split is never used to choose anything.
            folder: receives checkpoints, tickets and metrics.csv.
            device: where to train.
            teacher: of methods that learn from one.
            world: the processes that train together; all but the first have a folder that
                writes nothing.
        """
        self.config, self.phases, self.data = config, phases, data
        self.folder, self.device, self._teacher, self.world = folder, device, teacher, world
        self.train_split, self.split, self.held_out = choosing_split(
            data, config.select, config.validation, config.seed
        )
        self.progress = Progress()
        # Of each member that trains, where several do as one network.
        self.accuracies = Accuracies([0.0] * (config.members if is_grouped(config) else 1))
        self.best, self.kept = BestStates(), KeptStates()
        self.densities = Densities()
        self.guard = FiniteGuard(device, config.dtype == "fp16", config.skip_nonfinite)
        self.schedule = CheckpointSchedule(config.checkpoint_every)
        self._since: float | None = None

    def run(self) -> None:
        """Train to the end of the last phase.

        Raises:
            RunFailure: a loss or gradient is not finite; any checkpoint is from before.
            Stopped: a signal came; the checkpoint is of the last step made.
        """
        progress = self.progress
        total = sum(phase.steps for phase in self.phases)
        hidden = None if self.world.is_first else True
        with (
            tqdm(total=total, initial=progress.step, disable=hidden, unit="step") as bar,
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
            self.densities.phases += self.network.densities()
            self.progress.begun = True
            if self.progress.step == 0:
                self._save_checkpoint()
        config = self.config
        self.step = TrainingStep(
            self.network,
            partial(self._loss, phase),
            self.guard,
            config.dtype,
            self._uses_graph,
            config.compile,
        )

    def _loss(self, phase: Phase, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        soft = self._teacher.probabilities if self._teacher else None
        return phase.loss(logits, labels, Given(x, self.config.label_smoothing, soft))

    def begin_at(self, progress: Progress) -> None:
        """Begin with a later step or member than the first."""
        self.progress = progress
        self.guard.begin_at(progress.step)

    def start_member(self, member: int, sparsity: float | None = None) -> None:
        """Go on with a fresh network, whose seed and data order are those of a member.

        Members that train as one all start, one after another, as they would alone.
        """
        self.progress.member = member
        config, info, world = self.config, self.data.info, self.world
        if is_grouped(config):
            place, steps = (self.train_split, info, self.device), self.phases[0].steps
            self.network, self.whole_loader = start_group(config, *place, steps, sparsity)
            self.loader = self.whole_loader
            return
        seed = member_seed(config.seed, member)
        self.whole_loader = training_loader(
            self.train_split, info, config.batch_size, self.device, seed, config.workers
        )
        self.loader = self.whole_loader
        if world.size > 1:
            self.loader = self.whole_loader.of(world.share(config.batch_size))
        start = start_batches(config.start, self.whole_loader, info.classes)
        self.network = build_network(config, info, self.device, member, sparsity, start, world)
        if not world.is_first:
            # Dropout drops other activations of other images.
            torch.manual_seed(member_seed(seed, world.rank))

    @property
    def _uses_graph(self) -> bool:
        on_gpu = self.device.type == "cuda" and self.world.size == 1
        return on_gpu and self.config.cuda_graph != "off"

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
            is_due = self.schedule.is_due() or self.signals.received is not None
            if remaining and self.world.any(is_due):
                self._check_steps()
                self._save_checkpoint()
                self._stop_if_asked()
        self.mean_loss = self.guard.mean() / len(self.network.members)
        self.world.share_buffers(self.network.model)
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
                alone = partial(training_pair, self.network.model)
                found = diagnose(self.network.model, lambda: self.step.loss(x, y, alone), x)
            found = min(self.world.gather(found), key=lambda words: ": none" in words)
            self._fail(found.format(step))

    def _fail(self, found: str) -> NoReturn:
        raise RunFailure(f"{found}; any checkpoint is from before; try a lower --lr")

    def _stop_if_asked(self) -> None:
        received = max(self.world.gather(self.signals.received or 0))
        if received:
            raise Stopped(
                f"at step {self.progress.step}; continue with --resume {self.folder.path}", received
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
        predicted = [self.predict(model) for model in self.network.members]
        self._check_predictions([probabilities for probabilities, _ in predicted])
        self.accuracies[:] = [accuracy(*pair) for pair in predicted]
        mean = fmean(self.accuracies)
        bar.set_postfix(loss=f"{self.mean_loss:.3f}", accuracy=f"{mean:.4f}")
        if phase.selects and self.split == "validation":
            self._keep_best()
        nll = fmean(negative_log_likelihood(*pair) for pair in predicted)
        self.folder.add_row(self._row(phase, mean, nll).texts())
        if progress.phase_step == phase.steps:
            for action in phase.end:
                action(self)
            self.best.clear()
            progress.phase, progress.phase_step, progress.begun = progress.phase + 1, 0, False
        self._save_checkpoint()

    def _check_predictions(self, predicted: Sequence[Tensor]) -> None:
        """Raise RunFailure if the last update has broken a member's weights."""
        step, batch = self.progress.step, self.whole_loader.batch
        found = broken_member(self.network.members, predicted, lambda: batch(step - 1)[0])
        if found is not None:
            self._fail(found.format(step))

    def _row(self, phase: Phase, accuracy: float, nll: float) -> EpochRow:
        progress = self.progress
        return EpochRow(
            epoch=-(-progress.step // self.loader.steps_per_epoch),
            step=progress.step,
            phase=phase.name,
            learning_rate=float(self.network.rate),
            train_loss=self.mean_loss,
            split=self.split,
            nll=nll,
            accuracy=accuracy,
            exploration_rate=self.topology.exploration_rate(),
            train_seconds=progress.train_seconds,
        )

    def _keep_best(self) -> None:
        """Remember the present state of every member that was never better."""
        for number, found in enumerate(self.accuracies):
            if len(self.best) == number or found > self.best[number]["accuracy"]:
                self.best[number : number + 1] = [self.present_state(number)]

    def _save_checkpoint(self) -> None:
        self._count_seconds()
        self.folder.save_checkpoint(state_of(self))
        self.schedule.restart()
