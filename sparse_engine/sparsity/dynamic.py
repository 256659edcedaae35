"""DynamicSparsity: topology updates in a user's own training loop."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.ids.replicas import refuse_early_ends
from sparse_engine.optimizers.owners import Owners
from sparse_engine.schema import check_like, demand
from sparse_engine.shards import is_sharded
from sparse_engine.sparsity.averages import Averages
from sparse_engine.sparsity.processes import Group, ProcessesOfGroup, processes_of
from sparse_engine.sparsity.sharded import Shards, check_known, refuse_sharded, refuse_tools_of
from sparse_engine.sparsity.step_gradients import Seen, StepGradients, averaged
from sparse_engine.sparsity.topology import Topology
from sparse_engine.sparsity.update_schedule import (
    DropSchedule,
    UpdateRule,
    UpdateSchedule,
    last_step,
)


class DynamicSparsity:
    """Dynamic sparse training in one's own loop: make it once, call step() in every step.

    A loop is then

        sparsify(model, sparsity=0.8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        dynamic = DynamicSparsity(model, optimizer, rule="rigl", total_steps=10_000)
        for x, y in batches:
            loss(model(x), y).backward(); optimizer.step(); optimizer.zero_grad(); dynamic.step()

    The order of the last three is free. Blocks move in layers that are trained: their values
    require a gradient, an optimizer holds them, and they took part in the step. They grow by the
    gradient that the optimizer saw, over however many backward passes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
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
        """Prepare the updates.

        Args:
            model: after sparsify.
            optimizer: built after sparsify; several where several train the model. One that is
                made later is noticed when it steps.
            rule: "static", "set", "rigl", "snfs" (after sparsify with a `headroom`) or "granet"
                (after sparsify with a `start_sparsity`).
            interval: steps from one update to the next.
            drop: share of each layer's active blocks that an update replaces.
            stop: share of total_steps after which topology is fixed; above 1 a step number.
            total_steps: length of the run; without it a share says nothing, so updates go on at
                a constant rate (and a log line says so).
            schedule: "cosine" or "constant" drop rate.
            seed: of the random choices; with several processes that of the first counts.
            averages: averages of the model's weights (EMA, SWA, mean teachers) as copies of it, an
                AveragedModel or a timm EMA's `.module`: they are given the model's blocks.
            process_group: of the processes that train the model together: None is the default group
                of torch.distributed, if there is one; False is for models that train by themselves.
            accumulate: False promises that a step is a single backward pass in a single process;
                dense gradients are then freed layer by layer within it.
            cover: True spares the last block of an output or input channel, and grows one where a
                channel has none: for layers of few blocks (docs/training.md, --cover).
        """
        self.schedule = UpdateSchedule(interval, drop, last_step(stop, total_steps), schedule)
        if rule != "static" and total_steps is not None:
            self.schedule.check_length(total_steps)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
        self._shards = Shards(model)
        self._owners = Owners(optimizer, {n: layer.values for n, layer in layers.items()})
        refuse_tools_of(model, self._owners.optimizers)
        refuse_sharded(layers, self._shards)
        if rule != "static" and not self._owners.trained():
            _check_optimizers(model, self._owners)
        self.topology = Topology(
            model, self._owners, rule, seed, accumulate=accumulate, cover=cover
        )
        if rule == "granet":
            self._check_pruning()
        self.steps = 0
        self._group = process_group
        self._join()
        self._gradients = StepGradients(layers, self._owners)
        self._averages = Averages(layers, averages)
        self._outcome: dict[str, str | Tensor | None] = {}
        self._idle, self._steps_seen = 0, self._owners.steps
        self._arm_if_next()

    def step(self) -> bool:
        """Count one training step, update the topology if it is time.

        Where optimizers step before this is called, a call without a step of theirs counts for
        nothing: amid accumulation, or where GradScaler has left the step out.

        Returns:
            Whether the topology was updated: False also where nothing has had a gradient.

        Raises:
            RunFailure: blocks differ between the processes that train the model.
            InputError: DistributedDataParallel.join() lets some of them end before others.
        """
        if self._group is None:
            self._join()
        if self.topology.rule != "static" and self.topology.processes.size > 1:
            refuse_early_ends(self.topology.layers.values())
        self._warn_if_captured()
        count = self._gradients.pass_by()
        if count is None:
            return False
        self.steps = max(1, self.steps + count)
        rate, updated = self.schedule.rate(self.steps), False
        if self._gradients.is_armed:
            self._shards.settle()
            check_known(self.topology.layers, self._owners.parameters)
            found = self._read_gradients()
            updated = rate > 0 and self._update(rate, found)
        self._arm_if_next()
        return updated

    @property
    def is_armed(self) -> bool:
        """Whether an update looks at the coming step, which must then not replay a CUDA graph."""
        return self._gradients.is_armed

    @property
    def last_update(self) -> dict[str, str]:
        """What the last update did to each layer: "updated", or why its blocks stayed.

        That is "not trained", "took no part in the step" or "gradient not finite". Empty before the
        first update. Waits for a GPU.
        """
        return {name: _words(outcome) for name, outcome in self._outcome.items()}

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
        self._averages.follow()
        self._arm_if_next()

    def _read_gradients(self) -> dict[str, Seen]:
        """Return what the step has seen of each layer, scored; layers without a score left out."""
        layers, needed = self.topology.layers, self.topology.needs_gradient
        trained = {name: layers[name] for name in sorted(self._owners.trained())}
        found = averaged(self._gradients.read(), trained, self.topology.processes)
        for name, seen in found.items():
            if seen.gradient is not None:
                layers[name].add_scores(seen.gradient)
        return {
            n: seen for n, seen in found.items() if not needed or layers[n].collected is not None
        }

    def _update(self, rate: float, found: Mapping[str, Seen]) -> bool:
        """Update the layers of which something was seen; return whether there were any."""
        trained = self._owners.trained()
        self._averages.warn_of_others()
        stays = {name: seen.left_out for name, seen in found.items()}
        updated = self.topology.update(rate, self.schedule.pruned_share(self.steps), stays)
        self._averages.follow()
        self._outcome = {
            name: updated.get(name, _why_kept(name, trained, found))
            for name in self.topology.layers
        }
        return bool(updated)

    def _warn_if_captured(self) -> None:
        """Warn once if no step is seen where one may be recorded: replays call nothing."""
        self._idle = self._idle + 1 if self._owners.steps == self._steps_seen else 0
        self._steps_seen = self._owners.steps
        is_idle, layers = self._idle == self.schedule.interval + 1, self.topology.layers
        if is_idle and any(layer.values.is_cuda for layer in layers.values()):
            warnings.warn(
                "no optimizer steps between calls of dynamic.step(): where steps are recorded as a "
                "CUDA graph, take those without it for which dynamic.is_armed is true",
                stacklevel=3,
            )

    def _arm_if_next(self) -> None:
        """Collect in the next step, if an update looks at it."""
        following, topology = self.steps + 1, self.topology
        if topology.looks_at(self.schedule, following) or self.schedule.rate(following):
            self._shards.settle()
            topology.arm(self._owners.trained())
            self._gradients.arm()
        else:
            self._gradients.disarm()
            if topology.is_armed:
                topology.disarm()

    def _join(self) -> None:
        """Begin with the blocks of the first of the processes that train the model, if several do.

        Raises:
            InputError: the processes have different models.
        """
        topology = self.topology
        if topology.processes.size > 1:
            return
        processes = processes_of(self._group)
        self._shards.check_processes(self.topology.layers, processes.size)
        if not isinstance(processes, ProcessesOfGroup):
            return
        if not topology.accumulate:
            raise InputError("accumulate=False is for a model that a single process trains")
        layers = topology.layers
        sizes = [(name, layer.layout.shape, layer.values.shape) for name, layer in layers.items()]
        processes.check_same((topology.rule, self.schedule, self.steps, sizes))
        device = next(iter(layers.values())).values.device
        seed = torch.tensor(topology.seed, device=device)
        ids = [layer.block_ids for layer in layers.values()]
        # Of those that are cut up each process has its own part.
        whole = [layer.values for layer in layers.values() if not is_sharded(layer.values)]
        processes.send_from_first([seed, *ids, *whole])
        for layer in layers.values():
            layer.refresh()
        topology.processes, topology.seed = processes, int(seed)
        topology.begin_exploring()

    def _check_pruning(self) -> None:
        if self.schedule.stop is None:
            raise InputError("rule 'granet' prunes over the run: say total_steps")
        if all(layer.final_active is None for layer in self.topology.layers.values()):
            raise InputError(
                "rule 'granet' prunes from a denser start: give sparsify a start_sparsity"
            )


def _check_optimizers(model: nn.Module, owners: Owners) -> None:
    """Raise InputError unless layers without an optimizer may still be given one.

    A frozen layer may be trained later; an optimizer that holds weights which the model no longer
    has was built too early.
    """
    if not any(isinstance(m, SparseLayer) for m in model.modules()):
        raise InputError("the model has no sparse layer: call sparsify first")
    known = {id(p) for p in model.parameters()}
    groups = [group for one in owners.optimizers for group in one.param_groups]
    held = [p for group in groups for p in group["params"]]
    if not held:
        raise InputError("the optimizer holds no parameter: call sparsify first, then make it")
    if any(id(p) not in known for p in held):
        raise InputError(
            "no sparse layer's values are in the optimizer, which holds parameters that the model "
            "no longer has: it was made before sparsify; call sparsify first, then make it"
        )


def _why_kept(name: str, trained: set[str], found: Mapping[str, Seen]) -> str:
    if name not in trained:
        return "not trained"
    return "gradient not finite" if name in found else "took no part in the step"


def _words(outcome: str | Tensor | None) -> str:
    if isinstance(outcome, str):
        return outcome
    return "gradient not finite" if outcome is not None and bool(outcome) else "updated"
