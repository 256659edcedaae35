"""The training loop: it runs any list of phases, and every method is such a list."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparse_engine.architecture import training_pair
from sparse_engine.checkpoint import load_file, save_file
from sparse_engine.config import MOVABLE, Config
from sparse_engine.costs import Densities
from sparse_engine.data.arrays import DataSet
from sparse_engine.data.loader import split_validation
from sparse_engine.downsampling import some_smaller
from sparse_engine.errors import InputError
from sparse_engine.evaluation import batches, predict, training_loader
from sparse_engine.finite import LossGuard
from sparse_engine.metrics import accuracy, negative_log_likelihood
from sparse_engine.network import Network, build_network, member_seed
from sparse_engine.phases import Phase
from sparse_engine.recut import saved_densities, without_unused_slots
from sparse_engine.run_folder import RunFolder
from sparse_engine.starts import start_batches
from sparse_engine.teacher import Teacher


@dataclass
class Progress:
    """Where a run is: `step` of the whole run, `phase_step` of the phase, `tickets` saved."""

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    member: int = -1
    tickets: int = 0
    train_seconds: float = 0.0


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
        """Prepare a run from its start.

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
        self.guard = LossGuard(device)
        self.network: Network

    def restore(self) -> None:
        """Continue from the folder's checkpoint, if there is one.

        Raises:
            InputError: it cannot be read, or is of another configuration or other data.
        """
        if not self.folder.last.exists():
            self.folder.drop_rows_after(0)
            return
        state = load_file(self.folder.last, "progress", "config", "kept")
        self._check_configuration(state["config"])
        self.progress = Progress(**state["progress"])
        self.start_member(self.progress.member)
        try:
            self.network.load(state["model"])
        except RuntimeError as error:
            raise InputError(
                f"checkpoint '{self.folder.last}' does not fit the data: {error}"
            ) from None
        self.network.optimizer.load_state_dict(state["optimizer"])
        self.network.topology.load_state_dict(state["topology"])
        self.best, self.kept = state["best"], state["kept"]
        self.accuracy = state["accuracy"]
        self.densities = Densities(**state["densities"])
        torch.set_rng_state(state["random_state"])
        if state["device_random_state"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_random_state"], self.device)
        self.folder.drop_rows_after(self.progress.step)

    def _check_configuration(self, saved: dict[str, Any]) -> None:
        for name, value in self.config.saved().items():
            if name not in MOVABLE and value != saved.get(name):
                raise InputError(
                    f"checkpoint '{self.folder.last}' was trained with {name} {saved.get(name)}, "
                    f"found {value}: a resumed run keeps its configuration; start a new one"
                )

    def run(self) -> None:
        """Train to the end of the last phase.

        Raises:
            RunFailure: the loss is not finite; any checkpoint is from before.
        """
        total = sum(phase.steps for phase in self.phases)
        with tqdm(total=total, initial=self.progress.step, disable=None, unit="step") as bar:
            while self.progress.phase < len(self.phases):
                phase = self.phases[self.progress.phase]
                bar.set_description(phase.name)
                if self.progress.phase_step == 0:
                    for action in phase.begin:
                        action(self)
                    self.densities.phases.append(self.network.densities())
                self._train_epoch(phase, bar)
                self._close_epoch(phase, bar)

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

    def _train_epoch(self, phase: Phase, bar: tqdm) -> None:
        """Train to the end of the epoch or of the phase, whichever comes first."""
        progress, began = self.progress, time.perf_counter()
        self.network.model.train()
        left = self.loader.steps_per_epoch - progress.step % self.loader.steps_per_epoch
        for _ in range(min(left, phase.steps - progress.phase_step)):
            self._train_step(phase)
            progress.step += 1
            progress.phase_step += 1
            bar.update()
        self.mean_loss = self.guard.check()
        progress.train_seconds += time.perf_counter() - began

    def _train_step(self, phase: Phase) -> None:
        network, number = self.network, self.progress.phase_step + 1
        schedule = phase.update_schedule()
        rate = schedule.rate(number) if schedule else 0.0
        if schedule:
            network.topology.arm_before(schedule, number)
        if phase.ends_with_gradient and number == phase.steps:
            network.topology.arm()
        multiple = phase.learning_rate.at(self.progress.phase_step, phase.steps)
        for group in network.optimizer.param_groups:
            group["lr"] = self.config.lr * multiple
        step, config = self.progress.step, self.config
        x, y = self.loader.batch(step)
        with some_smaller(network.model, x, config.downsample_rate, config.seed, step) as x:
            x = x.contiguous(memory_format=torch.channels_last)
            loss = self._loss(phase, x, y)
        self.guard.add(self.progress.step, loss, network.model, x)
        network.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        network.optimizer.step()
        if rate:
            network.topology.update(rate, schedule.pruned_share(number))

    def _loss(self, phase: Phase, x: Tensor, y: Tensor) -> Tensor:
        bf16 = self.config.dtype == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            logits, labels = training_pair(self.network.model, x, y)
            return phase.loss(self, x, logits, labels)

    def _close_epoch(self, phase: Phase, bar: tqdm) -> None:
        """Evaluate, log, end the phase if it is over, and write a checkpoint."""
        progress = self.progress
        probabilities, labels = self._predict(self.network.model)
        self.guard.check_predictions(progress.step, probabilities)
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
                "learning_rate": f"{self.network.optimizer.param_groups[0]['lr']:.6g}",
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
            progress.phase, progress.phase_step = progress.phase + 1, 0
        self._save_checkpoint()

    def _predict(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        size = 2 * self.config.batch_size
        held_out = batches(self.held_out, self.data.info, size, self.device, self.config.workers)
        return predict(model, held_out, self.config.dtype == "bf16")

    def _save_checkpoint(self) -> None:
        on_gpu = self.device.type == "cuda"
        save_file(
            {
                "config": self.config.saved(),
                "progress": asdict(self.progress),
                "model": self.network.model.state_dict(),
                "optimizer": self.network.optimizer.state_dict(),
                "topology": self.network.topology.state_dict(),
                "best": self.best,
                "kept": self.kept,
                "accuracy": self.accuracy,
                "densities": asdict(self.densities),
                "random_state": torch.get_rng_state(),
                "device_random_state": torch.cuda.get_rng_state(self.device) if on_gpu else None,
            },
            self.folder.last,
        )


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose tensors are no longer the model's."""
    return {name: value.detach().clone() for name, value in state.items()}
