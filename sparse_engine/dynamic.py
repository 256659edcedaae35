"""When topology changes and by how much, and DynamicSparsity for a user's own training loop."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from sparse_engine.errors import InputError
from sparse_engine.topology import Topology

DROP_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class UpdateSchedule:
    """An update every `interval` steps, before step `stop`.

    drop: share of active blocks replaced, at the start; "cosine" anneals it to 0 at `stop`
    (Evci et al. 2020, section 3.2), "constant" keeps it (Liu et al. 2022).
    stop: first step without updates, None for never.
    """

    interval: int
    drop: float
    stop: int | None
    kind: str = "cosine"

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise InputError(f"the update interval must be at least 1 step, found {self.interval}")
        if not 0 < self.drop <= 1:
            raise InputError(f"the drop rate must be above 0 and at most 1, found {self.drop}")
        if self.kind not in DROP_SCHEDULES:
            raise InputError(f"unknown drop schedule '{self.kind}'; use constant or cosine")

    def rate(self, step: int) -> float:
        """Return the share to replace after step `step` (counted from 1), 0 between updates."""
        if step % self.interval or (self.stop is not None and step >= self.stop):
            return 0.0
        if self.kind == "constant" or self.stop is None:
            return self.drop
        return self.drop / 2 * (1 + math.cos(math.pi * step / self.stop))

    def updates_in(self, steps: int) -> int:
        """Return how many updates fall into the first `steps` steps."""
        last = steps if self.stop is None else min(steps, self.stop - 1)
        return max(0, last) // self.interval


class DynamicSparsity:
    """Dynamic sparse training in one's own loop: make it once, call step() after optimizer.step().

    Example:
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
            rule: "static", "set" or "rigl".
            interval: steps from one update to the next.
            drop: share of each layer's active blocks that an update replaces.
            stop: share of total_steps after which topology is fixed; above 1 a step number.
            total_steps: length of the run; without it a share says nothing, so updates go on at
                a constant rate (and a log line says so).
            schedule: "cosine" or "constant" drop rate.
            seed: of the random choices.
        """
        if rule != "static" and not any(True for _ in _sparse_parameters(model, optimizer)):
            raise InputError("no sparse layer's values are in the optimizer: call sparsify first")
        if stop is not None and stop <= 1:
            if total_steps is None:
                logging.getLogger(__name__).info(
                    "without total_steps, topology updates never stop and keep their rate"
                )
            stop = None if total_steps is None else stop * total_steps
        last = None if stop is None else math.ceil(stop)
        self.schedule = UpdateSchedule(interval, drop, last, schedule)
        self.topology = Topology(model, optimizer, rule, seed)
        self.steps = 0
        self._arm_if_next()

    def step(self) -> bool:
        """Count one training step, update the topology if it is time; return whether it was."""
        self.steps += 1
        rate = self.schedule.rate(self.steps)
        if rate:
            self.topology.update(rate)
        self._arm_if_next()
        return rate > 0

    def exploration_rate(self) -> float:
        """Return the share of weights that were ever active (ITOP)."""
        return self.topology.exploration_rate()

    def state_dict(self) -> dict:
        """Return what a resumed run needs."""
        return {"steps": self.steps, "topology": self.topology.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from state_dict(); the model's own state holds the blocks."""
        self.steps = state["steps"]
        self.topology.load_state_dict(state["topology"])
        self._arm_if_next()

    def _arm_if_next(self) -> None:
        if self.schedule.rate(self.steps + 1):
            self.topology.arm()


def _sparse_parameters(model: nn.Module, optimizer: Optimizer):
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if name.endswith("values") and id(parameter) in owned:
            yield parameter
