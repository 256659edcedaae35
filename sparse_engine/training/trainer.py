"""The training loop: it runs any list of phases, and every method is such a list."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_engine.errors import RunFailure, Stopped
from sparse_engine.evaluation.metrics import accuracy, negative_log_likelihood
from sparse_engine.methods.losses import Given
from sparse_engine.methods.phase import Phase
from sparse_engine.models.members import training_pair
from sparse_engine.runs.epoch_rows import EpochRow
from sparse_engine.training.downsampling import is_downsampled, some_smaller
from sparse_engine.training.epoch_log import epoch_log, in_words
from sparse_engine.training.finite import broken_member, diagnose
from sparse_engine.training.interrupts import CheckpointSchedule, StopSignals
from sparse_engine.training.progress import TimeLeft
from sparse_engine.training.state import state_of
from sparse_engine.training.step import TrainingStep
from sparse_engine.training.training_run import TrainingRun

# How much of the whole run is done, its time left, and what the last epoch ended with.
_BAR_FORMAT = "{desc}{percentage:3.0f}%|{bar}| {remaining} left{postfix}"


class Trainer(TrainingRun):
    """Runs the phases of one configuration, epoch by epoch, with a checkpoint after each."""

    # Steps of the run that other trainers make, and how many of them this process makes later.
    steps_elsewhere: int = 0
    steps_afterwards: int = 0
    _since: float | None = None

    def run(self) -> None:
        """Train to the end of the last phase.

        Raises:
            RunFailure: a loss or gradient is not finite; any checkpoint is from before.
            Stopped: a signal came; the checkpoint is of the last step made.
        """
        progress, self.schedule = self.progress, CheckpointSchedule(self.config.checkpoint_every)
        done = progress.steps_of(self.phases)
        total = sum(phase.steps for phase in self.phases) + self.steps_afterwards
        self.time_left = TimeLeft(done, total)
        # None hides the bar where there is no terminal.
        hidden = None if self.world.is_first else True
        with (
            # Without smoothing the time left is that of TimeLeft.
            tqdm(
                total=total, initial=done, disable=hidden, smoothing=0, bar_format=_BAR_FORMAT
            ) as bar,
            StopSignals() as self.signals,
            epoch_log(
                self.config.log, self.folder.path, progress.step, self.world.is_first
            ) as self.log,
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
            self.first_blocks.watch(self.topology.layers)
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
            network.topology.update(rate, schedule.pruned_share(number), self._stays())

    def _stays(self) -> dict[str, Tensor] | None:
        """Return the layers to update, which stay as they are if the step was left out."""
        if not (self.guard.allowed or self.guard.scaling):
            return None
        return dict.fromkeys(self.topology.layers, self.guard.found > 0)

    @contextmanager
    def _batch(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the images and labels of a step, as the network is to see them."""
        x, y = self.loader.batch(step)
        rate, seed = self.config.downsample_rate, self.config.seed
        with some_smaller(self.network.model, x, rate, seed, step) as x:
            yield x.to(memory_format=torch.channels_last), y

    def _check_steps(self) -> None:
        """Raise RunFailure if a step was not finite and may not be left out."""
        step = self.guard.fatal_step()
        if step is not None:
            with self._batch(step) as (x, y):
                alone = partial(training_pair, self.network.model)
                reason = diagnose(self.network.model, lambda: self.step.loss(x, y, alone), x, step)
            self._fail_for(min(self.world.gather(reason), key=lambda words: ": none" in words))

    def _fail_for(self, reason: str | None) -> None:
        if reason is not None:
            raise RunFailure(f"{reason}; any checkpoint is from before; try a lower --lr")

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
        """Evaluate if it is time, log, end the phase if it is over, and write a checkpoint."""
        progress = self.progress
        row = self._row(phase)
        if progress.phase_step == phase.steps or row.epoch % self.config.evaluate_every == 0:
            row = row._replace(**self._evaluate())
            if phase.selects and self.split == "validation":
                self._keep_best()
        self.folder.add_row(row.texts())
        self.folder.add_block_rows(self.first_blocks.rows(progress.step, self.topology))
        bar.set_postfix_str(in_words(row))
        steps = sum(phase.steps for phase in self.phases) + self.steps_elsewhere
        epochs = -(-steps // self.loader.steps_per_epoch)
        seconds_left = self.time_left.seconds(progress.steps_of(self.phases))
        self.log.add(row, epochs, seconds_left, self.network.members)
        if progress.phase_step == phase.steps:
            for action in phase.end:
                action(self)
            self.best.clear()
            progress.phase, progress.phase_step, progress.begun = progress.phase + 1, 0, False
        self._save_checkpoint()

    def _evaluate(self) -> dict[str, float]:
        """Return the means of NLL and accuracy over the members on held-out images."""
        step, predicted = self.progress.step, [self.predict(m) for m in self.network.members]
        last_batch = partial(self.whole_loader.batch, step - 1)
        self._fail_for(broken_member(self.network.members, predicted, last_batch, step))
        self.accuracies[:] = [accuracy(*pair, log=True) for pair in predicted]
        nlls = [negative_log_likelihood(*pair, log=True) for pair in predicted]
        return {"nll": fmean(nlls), "accuracy": fmean(self.accuracies)}

    def _row(self, phase: Phase) -> EpochRow:
        progress = self.progress
        return EpochRow(
            epoch=-(-progress.step // self.loader.steps_per_epoch),
            step=progress.step,
            phase=phase.name,
            learning_rate=float(self.network.rate),
            train_loss=self.mean_loss,
            split=self.split,
            nll=None,
            accuracy=None,
            exploration_rate=self.topology.exploration_rate(),
            train_seconds=progress.train_seconds,
        )

    def _keep_best(self) -> None:
        """Remember the present state of every member that was never better."""
        for number, latest in enumerate(self.accuracies):
            if len(self.best) == number or latest > self.best[number]["accuracy"]:
                self.best[number : number + 1] = [self.present_state(number)]

    def _save_checkpoint(self) -> None:
        self._count_seconds()
        self.folder.save_checkpoint(state_of(self))
        self.schedule.restart()
