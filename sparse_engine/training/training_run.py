"""A run in training: all that its checkpoints hold, and what actions do with it between phases."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparse_engine.config.config import Config
from sparse_engine.data.arrays import DataSet
from sparse_engine.data.splits import batches, choosing_split, training_loader
from sparse_engine.evaluation.metrics import accuracy
from sparse_engine.layers.state_dict import without_unused_slots
from sparse_engine.layers.surgery import Layouts
from sparse_engine.methods.actions import State, T
from sparse_engine.methods.independent import is_grouped
from sparse_engine.methods.phase import Phase
from sparse_engine.runs.run_folder import RunFolder
from sparse_engine.runs.teacher import Teacher
from sparse_engine.sparsity.channel_permutation.permutation import ChannelPermutation
from sparse_engine.sparsity.pruning import strongest_layouts
from sparse_engine.sparsity.saliency import saliency_batches
from sparse_engine.sparsity.topology import Topology
from sparse_engine.training.costs import Densities
from sparse_engine.training.finite import FiniteGuard
from sparse_engine.training.grouped import start_group
from sparse_engine.training.member_states import Accuracies, BestStates, KeptStates, copy_of
from sparse_engine.training.network import Network, build_network, member_seed, wanted
from sparse_engine.training.processes import SINGLE_PROCESS, DistributedContext, predict_together
from sparse_engine.training.progress import Progress


class TrainingRun:
    """The Run of actions.py. The trainer, which trains within phases, is one."""

    network: Network

    def __init__(
        self,
        config: Config,
        phases: Sequence[Phase],
        data: DataSet,
        folder: RunFolder,
        device: torch.device,
        teacher: Teacher | None = None,
        world: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        """Prepare a run from its start; state.restore continues one.

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
        start = saliency_batches(config.start, self.whole_loader, info.classes)
        self.network = build_network(config, info, self.device, member, sparsity, start, world)
        if not world.is_first:
            # Dropout drops other activations of other images.
            torch.manual_seed(member_seed(seed, world.rank))

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
        return {
            "accuracy": accuracy(*self.predict(model), log=True),
            "model": copy_of(model.state_dict()),
        }

    def predict(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [N, K] and labels [N] of the held-out split."""
        size = 2 * self.config.batch_size
        held_out = batches(self.held_out, self.data.info, size, self.device, self.config.workers)
        return predict_together(model, held_out, self.config.dtype, self.world)

    def save_ticket(self, state: State) -> None:
        """Write the next member_K.pt."""
        self.progress.tickets += 1
        model = self.network.members[0]
        ticket = without_unused_slots(model, state["model"])
        self.folder.save_member(self.progress.tickets, ticket, self.data.info.class_names)
        self.densities.add_ticket(model, ticket)
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
        return strongest_layouts(model, wanted(self.config, sparsity), self.config.prune_scope)

    def training_images(self) -> Iterator[Tensor]:
        """Yield an epoch of training batches [N, C, H, W]: a function of seed and step alone."""
        first = self.progress.step
        for step in range(first, first + self.loader.steps_per_epoch):
            yield self.whole_loader.batch(step)[0].to(memory_format=torch.channels_last)

    def agreed(self, compute: Callable[[], T]) -> T:
        """Return what the first process computes, in all processes the same."""
        return self.world.from_first(compute)
