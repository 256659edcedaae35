"""DynamicSparsityCallback for the Trainer of `lightning`, and of `pytorch_lightning`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from sparse_engine.integrations.trainer_topology import TrainerTopology, framework
from sparse_engine.layers.base import SparseLayer
from sparse_engine.sparsity.sharded import refuse_tools

_PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
if TYPE_CHECKING:
    Callback = Any
else:
    # Hooks of both are the same; what the program has imported takes no time to import.
    _PACKAGES.sort(key=lambda name: sys.modules.get(name) is None)
    Callback = framework(*_PACKAGES).Callback

# Callbacks of Lightning that average weights; both keep the average in this attribute.
_AVERAGING, _AVERAGE = ("WeightAveraging", "StochasticWeightAveraging"), "_average_model"


class DynamicSparsityCallback(TrainerTopology, Callback):
    """DynamicSparsity in a Trainer of Lightning.

        Trainer(callbacks=[DynamicSparsityCallback(rule="rigl", interval=100)]).fit(module, data)

    The module's layers are sparse before its optimizers are made: call sparsify in `__init__` or
    `configure_model`. Its state is part of the Trainer's checkpoints. The models of Lightning's
    WeightAveraging, EMAWeightAveraging and StochasticWeightAveraging are known as averages; name
    others in `averages`. After every update `sparsity/density`, `sparsity/exchanged` and
    `sparsity/survival` go to the Trainer's loggers (see BlockMoves).
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse strategies that cut parameters up; forget a state that another run has loaded."""
        if stage == "fit":
            refuse_tools(type(trainer.strategy))
            self.keep(None)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin: model, optimizers and checkpoint are there, and the number of batches is known."""
        self.begin(
            pl_module,
            trainer.optimizers,
            _total_steps(trainer),
            trainer.global_step // max(1, len(trainer.optimizers)),
            list(_averages(trainer)),
        )

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the topology if it is time; micro-batches without a step do not count."""
        metrics = self.after_step()
        for logger in trainer.loggers if metrics else ():
            logger.log_metrics(metrics, step=trainer.global_step)
        if metrics:
            trainer.callback_metrics.update(metrics)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Put averages right, with which WeightAveraging is about to swap the model's tensors."""
        _put_right(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Put averages right; those updated later in this hook follow in on_train_end."""
        _put_right(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Put averages right, which WeightAveraging is about to copy into the model."""
        _put_right(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return what the Trainer's checkpoint holds of this callback."""
        return self.run_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until training begins."""
        self.keep(state_dict)


def _total_steps(trainer: Any) -> int | None:
    """Return how many steps the whole run has; None where Lightning does not know.

    Nor where it is told to try out a batch or two, for which no schedule was meant.
    """
    steps = trainer.estimated_stepping_batches
    known = not trainer.fast_dev_run and math.isfinite(steps) and steps > 0
    return int(steps) if known else None


def _averages(trainer: Any) -> Iterator[nn.Module]:
    for callback in trainer.callbacks:
        kinds = {kind.__name__ for kind in type(callback).__mro__}
        average = getattr(callback, _AVERAGE, None)
        if kinds & {*_AVERAGING} and isinstance(average, nn.Module):
            yield average


def _put_right(trainer: Any) -> None:
    """Let averages look at their block ids, of which WeightAveraging has made means, rounded.

    They have the model's blocks (DynamicSparsity's `averages`), and write these again.
    """
    for average in _averages(trainer):
        for module in average.modules():
            if isinstance(module, SparseLayer):
                _ = module.layout
