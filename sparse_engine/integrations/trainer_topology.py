"""What callbacks of all trainers share: DynamicSparsity, made when training begins.

A trainer makes the optimizer, knows how long it trains, and loads checkpoints before either. So a
callback takes the arguments of DynamicSparsity but model and optimizer, keeps a state that is
loaded, and begins when training does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparse_engine.errors import InputError
from sparse_engine.installed import not_installed
from sparse_engine.integrations.block_moves import BlockMoves
from sparse_engine.sparsity.dynamic import DynamicSparsity
from sparse_engine.sparsity.processes import Group
from sparse_engine.sparsity.topology import Topology
from sparse_engine.sparsity.update_schedule import DropSchedule, UpdateRule


class TrainerTopology:
    """Topology updates of a model that a trainer trains."""

    dynamic: DynamicSparsity | None = None
    """Updates the topology from the beginning of training on."""

    def __init__(
        self,
        rule: UpdateRule = "rigl",
        interval: int = 100,
        drop: float = 0.3,
        stop: float | None = 0.75,
        *,
        total_steps: int | None = None,
        schedule: DropSchedule = "cosine",
        seed: int = 0,
        averages: Sequence[nn.Module] = (),
        process_group: Group = None,
        accumulate: bool = True,
        cover: bool = False,
    ) -> None:
        """Arguments are those of DynamicSparsity without model and optimizer.

        total_steps: steps of the optimizer in the whole run; the trainer's unless given.
        averages: averages of the model's weights besides those that the trainer is known to make.
        """
        if not all(isinstance(average, nn.Module) for average in averages):
            raise InputError(
                "averages must be modules: copies of the model, such as AveragedModel; a Trainer "
                "that makes callbacks anew (restore_callback_states_from_checkpoint) has none: "
                "leave that setting off, and this callback's state is restored all the same"
            )
        self.arguments: dict[str, Any] = {
            "rule": rule,
            "interval": interval,
            "drop": drop,
            "stop": stop,
            "total_steps": total_steps,
            "schedule": schedule,
            "seed": seed,
            "averages": tuple(averages),
            "process_group": process_group,
            "accumulate": accumulate,
            "cover": cover,
        }
        self._moves: BlockMoves | None = None
        self._loaded: Mapping[str, Any] | None = None

    def begin(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        total_steps: int | None,
        steps: int = 0,
        averages: Sequence[nn.Module] = (),
    ) -> None:
        """Make the updates of a model that is about to be trained, or trained on.

        Args:
            model: after sparsify, with what a checkpoint says of it.
            optimizers: of it.
            total_steps: of the whole run, as the trainer knows them; None where it does not.
            steps: done before. Where they are not of a state that was loaded, updates begin there.
            averages: of the model, made by the trainer.

        Raises:
            InputError: as DynamicSparsity does; a state of another model or rule.
        """
        arguments = dict(self.arguments)
        arguments["averages"] = [*arguments["averages"], *averages]
        if arguments["total_steps"] is None:
            arguments["total_steps"] = total_steps
        state = self._loaded
        if state is None and self.dynamic is not None and steps:
            state = self.run_state()  # of the same trainer, which is told to train on
        self._loaded = None
        self.dynamic = DynamicSparsity(model, optimizers, **arguments)
        self._moves = BlockMoves(self._topology.layers)
        if state is not None:
            self.dynamic.load_state_dict(state["dynamic"])
            self._moves.load_state_dict(state["grown"])
        elif steps:
            self.dynamic.load_state_dict({**self.dynamic.state_dict(), "steps": steps})

    def after_step(self) -> dict[str, float]:
        """Count a step; return what an update has done to the blocks, nothing without one."""
        if self.dynamic is None or self._moves is None or not self.dynamic.step():
            return {}
        return self._moves.after_update()

    def run_state(self) -> dict[str, Any]:
        """Return what a resumed run needs; nothing before a run has begun."""
        if self.dynamic is None or self._moves is None:
            return dict(self._loaded or {})
        return {"dynamic": self.dynamic.state_dict(), "grown": self._moves.state_dict()}

    def keep(self, state: Mapping[str, Any] | None) -> None:
        """Begin with a run_state() that was loaded; None with a new one."""
        self._loaded = state or None

    @property
    def _topology(self) -> Topology:
        assert self.dynamic is not None
        return self.dynamic.topology


def framework(*names: str) -> Any:
    """Return the first of some modules that is installed.

    Raises:
        InputError: none is.
    """
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    raise InputError(not_installed("this callback", names[0].partition(".")[0]))
