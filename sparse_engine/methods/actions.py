"""What happens between phases: small objects that a method lists. Imports torch when they run.

An action is called with the run before a phase's first step or after its last; the checkpoint that
follows holds what it did. What later phases need goes into `run.kept`, states by name, which the
checkpoint holds too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparse_engine.layers.surgery import Layouts
    from sparse_engine.sparsity.channel_permutation.permutation import ChannelPermutation
    from sparse_engine.sparsity.topology import Topology

# A network at some time: `model`, its state dict, and `accuracy` on the held-out split.
State = dict[str, Any]
T = TypeVar("T")


class Run(Protocol):
    """What an action may see of a run, and do to it; see training_run.py.

    best: states of the best epoch of the phase, of each member; empty where none is chosen.
    kept: states by name, for later phases.
    """

    best: list[State]
    kept: dict[str, State]

    @property
    def model(self) -> nn.Module:
        """The network that trains."""
        ...

    @property
    def topology(self) -> Topology:
        """The rule that replaces its blocks."""
        ...

    @property
    def teacher(self) -> nn.Module | None:
        """The network that it learns from, if it does."""
        ...

    def next_member(self, sparsity: float | None = None) -> None:
        """Begin a new member: a fresh network, with a seed and data order of its own."""

    def present_states(self) -> list[State]:
        """Return a copy of the present state of each network that trains."""
        ...

    def evaluated(self, model: nn.Module) -> State:
        """Return the state of another model."""
        ...

    def save_ticket(self, state: State) -> None:
        """Save a state as the next ticket."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Become the network of a state dict, blocks and all; no momentum."""

    def replace_layers(self, layers: Mapping[str, nn.Module]) -> None:
        """Put other layers in place of some; momenta of the blocks that stay are carried over."""

    def permute(self, permutation: ChannelPermutation) -> None:
        """Put the channels of the network, and its momenta, in another order."""

    def strongest(self, model: nn.Module, sparsity: float) -> Layouts:
        """Return the blocks of a model that stay when it is pruned as the run's settings say."""
        ...

    def training_images(self) -> Iterator[Tensor]:
        """Yield an epoch of training batches [N, C, H, W]."""
        ...

    def agreed(self, compute: Callable[[], T]) -> T:
        """Return what the first process computes, in all processes the same."""
        ...


@dataclass(frozen=True)
class Action:
    """Base of all actions: what the loop and the cost model ask of one."""

    needs_gradient: ClassVar[bool] = False
    starts_member: ClassVar[bool] = False
    # What a state holds that it keeps under its name.
    keeps: ClassVar[tuple[str, ...]] = ()

    @property
    def saves(self) -> int:
        """How many tickets it saves."""
        return 0

    @property
    def selects(self) -> bool:
        """Whether it takes the best epoch of its phase where validation data choose."""
        return False

    def __call__(self, run: Run) -> None:
        """Do it."""
        raise NotImplementedError

    def sparsity_after(self, sparsity: float, kept: dict[str, float]) -> float:
        """Return the network's sparsity afterwards, and note that of states kept by name."""
        return sparsity


@dataclass(frozen=True)
class StartMember(Action):
    """Begin with a new network of some sparsity, with a seed and data order of its own."""

    sparsity: float
    starts_member: ClassVar[bool] = True

    def __call__(self, run: Run) -> None:
        """Build it."""
        run.next_member(self.sparsity)

    def sparsity_after(self, sparsity: float, kept: dict[str, float]) -> float:
        """Return that of the new network."""
        return self.sparsity


@dataclass(frozen=True)
class SaveTicket(Action):
    """Save the network as a ticket, or a state that was kept under a name.

    members: networks that train as one, each of which is a ticket.
    """

    kept: str | None = None
    members: int = 1

    @property
    def saves(self) -> int:
        """One ticket for each member."""
        return self.members

    @property
    def selects(self) -> bool:
        """Whether the ticket is the network itself."""
        return self.kept is None

    def __call__(self, run: Run) -> None:
        """Write member_K.pt."""
        states = run.best or run.present_states()
        for state in states if self.kept is None else [run.kept[self.kept]]:
            run.save_ticket(state)


@dataclass(frozen=True)
class Escape(Action):
    """Replace a share of all active blocks once, by the run's topology rule (FreeTickets: q)."""

    rate: float
    needs_gradient: ClassVar[bool] = True

    def __call__(self, run: Run) -> None:
        """Drop and grow."""
        run.topology.update(self.rate)


@dataclass(frozen=True)
class SaveState(Action):
    """Remember the network as it is, under a name: a state to rewind to."""

    name: str
    keeps: ClassVar[tuple[str, ...]] = ("accuracy", "model")

    def __call__(self, run: Run) -> None:
        """Copy it."""
        [run.kept[self.name]] = run.present_states()

    def sparsity_after(self, sparsity: float, kept: dict[str, float]) -> float:
        """Note the sparsity of the kept state."""
        kept[self.name] = sparsity
        return sparsity


@dataclass(frozen=True)
class StartFromState(Action):
    """Begin with a kept state, blocks and all, as a new member: new data order, no momentum."""

    name: str
    starts_member: ClassVar[bool] = True

    def __call__(self, run: Run) -> None:
        """Load it."""
        run.next_member()
        run.load(run.kept[self.name]["model"])

    def sparsity_after(self, sparsity: float, kept: dict[str, float]) -> float:
        """Return that of the kept state."""
        return kept[self.name]


@dataclass(frozen=True)
class Rewind(Action):
    """Give the active blocks, and all else, the values they had in a kept state; no momentum.

    Source: Frankle et al. 2020, weight rewinding.
    """

    name: str

    def __call__(self, run: Run) -> None:
        """Load the state, then prune it to the present blocks."""
        from sparse_engine.layers.surgery import change_layouts, used_layouts

        layouts = used_layouts(run.model)
        run.load(run.kept[self.name]["model"])
        run.replace_layers(change_layouts(run.model, layouts))


@dataclass(frozen=True)
class Average(Action):
    """Take the network into the running average kept under a name (see averaging.py).

    The first call keeps the network as it is. Each later one averages the weights, prunes the
    result to `sparsity` and computes its batch-norm statistics again; the network is untouched.
    rule: "caa", the mean of all so far, or "cima", an exponential mean with factor one half.
    """

    name: str
    rule: str
    sparsity: float
    keeps: ClassVar[tuple[str, ...]] = ("accuracy", "count", "model")

    def __call__(self, run: Run) -> None:
        """Update run.kept."""
        from sparse_engine.sparsity.averaging import average_networks

        kept, [present] = run.kept.get(self.name), run.present_states()
        if kept is None:
            run.kept[self.name] = {**present, "count": 1}
            return
        count = kept["count"] + 1
        share = 1 / count if self.rule == "caa" else 0.5
        model = average_networks(
            run.model,
            kept["model"],
            share,
            lambda mean: run.strongest(mean, self.sparsity),
            run.training_images(),
        )
        run.kept[self.name] = {**run.evaluated(model), "count": count}

    def sparsity_after(self, sparsity: float, kept: dict[str, float]) -> float:
        """Note the sparsity of the average."""
        kept[self.name] = self.sparsity
        return sparsity
