"""What a run looks like at the end of an epoch: its row in metrics.csv, and whether it is sound."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparse_engine.finite import first_bad_layer
from sparse_engine.metrics import negative_log_likelihood

if TYPE_CHECKING:
    from sparse_engine.phases import Phase
    from sparse_engine.trainer import Trainer

Predicted = Sequence[tuple[Tensor, Tensor]]


def row_of(run: Trainer, phase: Phase, predicted: Predicted) -> dict[str, Any]:
    """Return the row of the epoch that a run has just ended.

    Args:
        run: its loss, NLL and accuracy are means over the members that train as one, if they do.
        phase: of the epoch.
        predicted: probabilities [N, K] and labels [N] of each member.
    """
    step = run.progress.step
    return {
        "epoch": -(-step // run.loader.steps_per_epoch),
        "step": step,
        "phase": phase.name,
        "learning_rate": f"{float(run.network.rate):.6g}",
        "train_loss": f"{run.mean_loss:.6f}",
        "split": run.split,
        "nll": f"{fmean(negative_log_likelihood(*pair) for pair in predicted):.6f}",
        "accuracy": f"{fmean(run.accuracies):.6f}",
        "exploration_rate": f"{run.network.topology.exploration_rate():.6f}",
        "train_seconds": f"{run.progress.train_seconds:.3f}",
    }


def broken(run: Trainer, predicted: Predicted) -> str | None:
    """Return in words that, and where, the last update has broken a member's weights, if it has."""
    for model, (probabilities, _) in zip(run.network.members, predicted, strict=True):
        if not bool(probabilities.isfinite().all()):
            x = run.whole_loader.batch(run.progress.step - 1)[0]
            return (
                f"predictions are not finite at step {run.progress.step}; "
                f"first layer with such an output: {first_bad_layer(model.eval(), x)}"
            )
    return None
