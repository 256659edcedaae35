"""What actions see of a run and do to it between its phases: the Run of actions.py.

The trainer, which trains within phases, is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparse_engine.config.config import Config
from sparse_engine.data.arrays import DataSet
from sparse_engine.data.splits import Split, batches
from sparse_engine.evaluation.metrics import accuracy
from sparse_engine.layers.state_dict import saved_densities, without_unused_slots
from sparse_engine.layers.surgery import Layouts
from sparse_engine.methods.actions import State, T
from sparse_engine.runs.run_folder import RunFolder
from sparse_engine.runs.teacher import Teacher
from sparse_engine.sparsity.channel_permutation.permutation import ChannelPermutation
from sparse_engine.sparsity.pruning import strongest_layouts
from sparse_engine.sparsity.topology import Topology
from sparse_engine.training.costs import Densities
from sparse_engine.training.member_states import Accuracies, BestStates, KeptStates, copy_of
from sparse_engine.training.network import Network
from sparse_engine.training.processes import DistributedContext, predict_together
from sparse_engine.training.progress import Progress


class BetweenPhases:
    """A run as its actions see it; the trainer fills in what is declared here."""

    config: Config
    data: DataSet
    split: str
    held_out: Split
    folder: RunFolder
    device: torch.device
    world: DistributedContext
    progress: Progress
    densities: Densities
    accuracies: Accuracies
    best: BestStates
    kept: KeptStates
    network: Network
    loader: Any
    whole_loader: Any
    _teacher: Teacher | None

    def start_member(self, member: int, sparsity: float | None = None) -> None:
        """Go on with a fresh network, whose seed and data order are those of a member."""
        raise NotImplementedError

    @property
    def model(self) -> nn.Module:
        """The network that trains."""
        return self.network.model

    @property
    def topology(self) -> Topology:
        """The rule that replaces its blocks."""
        return self.network.topology

    @property
    def teacher(self) -> nn.Module | None:
        """The first network of its teacher, if it has one."""
        return self._teacher.models[0] if self._teacher else None

    def next_member(self, sparsity: float | None = None) -> None:
        """Begin a new member; `sparsity` is the configuration's unless said."""
        self.start_member(self.progress.member + 1, sparsity)

    def present_states(self) -> list[State]:
        """Return a copy of each member's state dict, with its accuracy on the held-out split."""
        return [self.present_state(number) for number in range(len(self.accuracies))]

    def present_state(self, number: int) -> State:
        """Return the same of one member, counted from 0."""
        model = copy_of(self.network.members[number].state_dict())
        return {"accuracy": self.accuracies[number], "model": model}

    def evaluated(self, model: nn.Module) -> State:
        """Return the same of another model."""
        return {"accuracy": accuracy(*self.predict(model)), "model": copy_of(model.state_dict())}

    def predict(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return probabilities [N, K] and labels [N] of the held-out split."""
        size = 2 * self.config.batch_size
        held_out = batches(self.held_out, self.data.info, size, self.device, self.config.workers)
        return predict_together(model, held_out, self.config.dtype, self.world)

    def save_ticket(self, state: State) -> None:
        """Write the next member_K.pt."""
        self.progress.tickets += 1
        model = self.network.members[0]
        ticket = without_unused_slots(model, state["model"])
        self.folder.save_member(self.progress.tickets, ticket)
        self.densities.tickets.append(saved_densities(model, ticket))
        if self.world.is_first:
            tqdm.write(
                f"ticket {self.progress.tickets}: {self.split} accuracy {state['accuracy']:.4f} "
                f"after {self.progress.step} steps"
            )

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Become the network of a state dict, blocks and all; no momentum."""
        self.network.load(state)

    def replace_layers(self, layers: Mapping[str, nn.Module]) -> None:
        """Put other layers in place of some; momenta of the blocks that stay are carried over."""
        self.network.replace_layers(layers)

    def permute(self, permutation: ChannelPermutation) -> None:
        """Put the channels of the network, and its momenta, in another order."""
        permutation.apply_(self.network.model, self.network.optimizer)

    def strongest(self, model: nn.Module, sparsity: float) -> Layouts:
        """Return the blocks of a model that stay when it is pruned as the run's settings say."""
        return strongest_layouts(model, sparsity, self.config)

    def training_images(self) -> Iterator[Tensor]:
        """Yield an epoch of training batches [N, C, H, W]: a function of seed and step alone."""
        first = self.progress.step
        for step in range(first, first + self.loader.steps_per_epoch):
            yield self.whole_loader.batch(step)[0].contiguous(memory_format=torch.channels_last)

    def agreed(self, find: Callable[[], T]) -> T:
        """Return what the first process finds, in all processes the same."""
        return self.world.from_first(find() if self.world.is_first else None)
