"""What a phase minimises. A loss is data; it imports torch when first called.

A loss is called with the run (a Trainer), images x [N, C, H, W] as the network sees them, and the
logits [..., K] with their labels [...] (see architecture.training_pair); it returns a scalar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from sparse_engine.trainer import Trainer


class Loss(Protocol):
    """What a phase needs of a loss; `teacher_passes` are forward passes of a teacher per step."""

    teacher_passes: int

    def __call__(self, run: Trainer, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy with the run's label smoothing, over all members if there are several."""

    teacher_passes = 0

    def __call__(self, run: Trainer, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over all leading dimensions."""
        import torch.nn.functional as F

        return F.cross_entropy(
            logits.float().flatten(0, -2),
            labels.flatten(),
            label_smoothing=run.config.label_smoothing,
        )


CROSS_ENTROPY = CrossEntropy()
