"""DynamicSparsity: topology updates in a user's own training loop."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparse_engine.errors import InputError
from sparse_engine.schema import check_like, demand
from sparse_engine.sparsity.topology import Topology
from sparse_engine.sparsity.update_schedule import UpdateSchedule


class DynamicSparsity:
    """Dynamic sparse training in one's own loop: make it once, call step() after optimizer.step().

    A loop is then

        sparsify(model, sparsity=0.8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        dynamic = DynamicSparsity(model, optimizer, rule="rigl", total_steps=10_000)
        for x, y in batches:
            loss(model(x), y).backward(); optimizer.step(); dynamic.step(); optimizer.zero_grad()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        rule: str = "rigl",
        interval: int = 100,
        drop: float = 0.3,
        stop: float | None = 0.75,
        *,
        total_steps: int | None = None,
        schedule: str = "cosine",
        seed: int = 0,
    ) -> None:
        """Prepare the updates.

        Args:
            model: after sparsify.
            optimizer: built after sparsify.
            rule: "static", "set", "rigl", "snfs" (after sparsify with a `headroom`) or "granet"
                (after sparsify with a `start_sparsity`).
            interval: steps from one update to the next.
            drop: share of each layer's active blocks that an update replaces.
            stop: share of total_steps after which topology is fixed; above 1 a step number.
            total_steps: length of the run; without it a share says nothing, so updates go on at
                a constant rate (and a log line says so).
            schedule: "cosine" or "constant" drop rate.
            seed: of the random choices.
        """
        dynamic = rule != "static"
        if dynamic and not any(True for _ in _sparse_parameters(model, optimizer)):
            raise InputError("no sparse layer's values are in the optimizer: call sparsify first")
        if stop is not None and not 0 < stop < math.inf:
            raise InputError(f"stop must be above 0 and finite, or None, found {stop}")
        if stop is not None and stop <= 1:
            if total_steps is None:
                logging.getLogger(__name__).info(
                    "without total_steps, topology updates never stop and keep their rate"
                )
            stop = None if total_steps is None else stop * total_steps
        last = None if stop is None else math.ceil(stop)
        self.schedule = UpdateSchedule(interval, drop, last, schedule)
        if dynamic and total_steps is not None and not self.schedule.updates_in(total_steps):
            raise InputError(
                f"a run of {total_steps} steps is too short for a topology update every "
                f"{interval} steps; make it longer, the interval shorter, or stop later"
            )
        self.topology = Topology(model, optimizer, rule, seed)
        if rule == "granet":
            self._check_pruning()
        self.steps = 0
        self._arm_if_next()

    def step(self) -> bool:
        """Count one training step, update the topology if it is time; return whether it was."""
        self.steps += 1
        rate = self.schedule.rate(self.steps)
        if rate:
            self.topology.update(rate, self.schedule.pruned_share(self.steps))
        self._arm_if_next()
        return rate > 0

    def exploration_rate(self) -> float:
        """Return the share of weights that were ever active (ITOP)."""
        return self.topology.exploration_rate()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"steps": self.steps, "topology": self.topology.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from state_dict(); the model's own state holds the blocks.

        Raises:
            InputError: it is of another model or rule.
        """
        check_like(state, {**self.state_dict(), "topology": state.get("topology")}, "state")
        self.topology.check_state(state["topology"])
        demand(state["steps"] >= 0, "state.steps", "at least 0", state["steps"])
        self.steps = state["steps"]
        self.topology.disarm()
        self.topology.load_state_dict(state["topology"])
        self._arm_if_next()

    def _arm_if_next(self) -> None:
        self.topology.arm_before(self.schedule, self.steps + 1)

    def _check_pruning(self) -> None:
        if self.schedule.stop is None:
            raise InputError("rule 'granet' prunes over the run: say total_steps")
        if all(layer.final_active is None for layer in self.topology.layers.values()):
            raise InputError(
                "rule 'granet' prunes from a denser start: give sparsify a start_sparsity"
            )


def _sparse_parameters(model: nn.Module, optimizer: Optimizer):
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if name.endswith("values") and id(parameter) in owned:
            yield parameter
