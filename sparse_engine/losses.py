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


@dataclass(frozen=True)
class Distillation:
    """Cross-entropy mixed with a teacher's soft labels (Hinton et al. 2015, section 2).

    temperature: of both softmaxes; the term is scaled by its square.
    weight: share of the soft labels, the rest is the labels'.
    """

    temperature: float
    weight: float
    teacher_passes = 1

    def __call__(self, run: Trainer, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mixture for logits [N, K]."""
        import torch.nn.functional as F

        soft = run.teacher.probabilities(x, self.temperature)
        student = (logits.float() / self.temperature).log_softmax(-1)
        divergence = F.kl_div(student, soft, reduction="batchmean") * self.temperature**2
        hard = CROSS_ENTROPY(run, x, logits, labels)
        return self.weight * divergence + (1 - self.weight) * hard


CROSS_ENTROPY = CrossEntropy()
