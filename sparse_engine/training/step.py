"""One training step, run as it is or replayed as a CUDA graph."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparse_engine.config.config import Dtype
from sparse_engine.device import autocast
from sparse_engine.errors import RunFailure, first_line
from sparse_engine.training.cuda_graph import Repeated
from sparse_engine.training.finite import FiniteGuard, statistics, undo
from sparse_engine.training.network import Network

PhaseLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TrainingStep:
    """The step of one network in one phase.

    Everything that changes from step to step is in tensors written in place: learning rate, loss
    scale, blocks, momenta. A step that collects dense gradients, or whose images have another
    size, runs as it is.
    """

    def __init__(
        self,
        network: Network,
        loss: PhaseLoss,
        guard: FiniteGuard,
        dtype: Dtype = "fp32",
        cuda_graph: bool = False,
        compiled: bool = False,
    ) -> None:
        """Prepare the step.

        Args:
            network: its layers and its optimizer's parameters stay the same from now on.
            loss: of images as the network sees them, logits and labels.
            guard: decides which steps the optimizer leaves out.
            dtype: "fp32", or "bf16" or "fp16" for autocast.
            cuda_graph: record the step once it has run a few times, and replay it.
            compiled: run the network through torch.compile.
        """
        self.network, self.guard, self.dtype = network, guard, dtype
        self._loss = loss
        self._pair = _compiled_pair(network.model) if compiled else network.pair
        self._graph = Repeated(lambda x, y: self._update(x, y, self._pair)) if cuda_graph else None
        may_skip = guard.allowed > 0 or guard.scaling
        self._statistics = statistics(network.model) if may_skip else []

    def __call__(self, x: Tensor, y: Tensor, usual: bool = True) -> None:
        """Train on images x [N, C, H, W] and labels y [N]; `usual` says that sizes are the same."""
        if not usual or self.network.topology.is_armed:
            self._update(x, y, self.network.pair)
        elif self._graph is None:
            self._update(x, y, self._pair)
        else:
            self._replay(x, y)

    def loss(self, x: Tensor, y: Tensor, pair: Pair | None = None) -> Tensor:
        """Return the loss of a batch."""
        with autocast(x.device, self.dtype):
            logits, labels = (pair or self.network.pair)(x, y)
            return self._loss(x, logits, labels)

    def _replay(self, x: Tensor, y: Tensor) -> None:
        try:
            self._graph(x, y)
            return
        except RuntimeError as error:
            if self._graph.is_recorded:
                raise
            reason = first_line(error)
            logging.getLogger(__name__).warning("the step runs without a CUDA graph: %s", reason)
        # Only here is the failure gone, and with it the half step that its frames held.
        self._graph = None
        self._update(x, y, self._pair)

    def _update(self, x: Tensor, y: Tensor, pair: Pair) -> None:
        optimizer, guard = self.network.optimizer, self.guard
        before = [buffer.clone() for buffer in self._statistics]
        optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x, y, pair)
        (loss * guard.scale if guard.scaling else loss).backward()
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        loss = self.network.world.mean(loss.detach().clone())
        guard.judge(loss, [p.grad for p in parameters if p.grad is not None])
        # As torch.amp.GradScaler tells fused optimizers.
        optimizer.found_inf = guard.found
        optimizer.grad_scale = guard.scale if guard.scaling else None
        optimizer.step()
        undo(self._statistics, before, guard.found)
        guard.adapt()


def _compiled_pair(model: nn.Module) -> Pair:
    """Return training_pair of a model through torch.compile."""
    own = getattr(model, "training_pair", None)
    compiled = torch.compile(model if own is None else own)

    def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return (compiled(x), y) if own is None else compiled(x, y)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException  # here: its import takes seconds

            if not isinstance(error, TorchDynamoException):
                raise
            reason = first_line(error)
            raise RunFailure(f"torch.compile failed: {reason}; leave out --compile") from None

    return pair
