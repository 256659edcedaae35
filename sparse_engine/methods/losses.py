"""What a phase minimises. A loss is data; it imports torch when first called.

A loss is called with logits [..., K], their labels [...] (see architecture.training_pair) and what
else is given with a batch; it returns a scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Given(NamedTuple):
    """What a loss may know of a batch besides its logits and labels.

    images: [N, C, H, W], as the network sees them.
    label_smoothing: of the run.
    teacher: the soft labels [N, K] of images at a temperature, in runs that have a teacher.
    """

    images: Tensor
    label_smoothing: float = 0.0
    teacher: Callable[[Tensor, float], Tensor] | None = None


class Loss(Protocol):
    """What a phase needs of a loss; `teacher_passes` are forward passes of a teacher per step."""

    teacher_passes: int

    def __call__(self, logits: Tensor, labels: Tensor, given: Given) -> Tensor:
        """Return the loss of a batch."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the run's label smoothing: the mean over images, the sum over members."""

    teacher_passes = 0

    def __call__(self, logits: Tensor, labels: Tensor, given: Given) -> Tensor:
        """Return it for logits [N, K] or [M, N, K]."""
        import torch.nn.functional as F

        mean = F.cross_entropy(
            logits.float().flatten(0, -2),
            labels.flatten(),
            label_smoothing=given.label_smoothing,
        )
        return mean * logits.shape[:-2].numel()


@dataclass(frozen=True)
class Distillation:
    """Cross-entropy mixed with a teacher's soft labels (Hinton et al. 2015, section 2).

    temperature: of both softmaxes; the term is scaled by its square.
    weight: share of the soft labels, the rest is the labels'.
    """

    temperature: float
    weight: float
    teacher_passes = 1

    def __call__(self, logits: Tensor, labels: Tensor, given: Given) -> Tensor:
        """Return the mixture for logits [N, K]."""
        import torch.nn.functional as F

        soft = given.teacher(given.images, self.temperature)
        student = (logits.float() / self.temperature).log_softmax(-1)
        divergence = F.kl_div(student, soft, reduction="batchmean") * self.temperature**2
        hard = CROSS_ENTROPY(logits, labels, given)
        return self.weight * divergence + (1 - self.weight) * hard


CROSS_ENTROPY = CrossEntropy()
