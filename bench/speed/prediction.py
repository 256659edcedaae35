"""A contender's prediction of one batch: by a dense network, or by tickets.

Tickets run one after another, or with the option "grouped" as one network of one launch a layer, or
with "vmapped" as dense weights stacked by torch.func, as is usual elsewhere. Batch norms are folded
where that is possible, in the dense network too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.speed.correctness import limit, refuse, relative_error
from bench.speed.folding import fold, foldable
from bench.speed.variant import OPTIONS, Case, Contender, Unavailable
from sparse_engine import TicketEnsemble, densify
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.batch_norm import estimate_batch_norm
from sparse_kernels.dispatch.backend import forced_backend

MEMBERS = 3
PHASE = "prediction"


class Stacked(nn.Module):
    """Dense members as one, by torch.func.stack_module_state and vmap (PyTorch's tutorial)."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        dense = [densify(copy.deepcopy(model)) for model in models]
        parameters, buffers = torch.func.stack_module_state(dense)
        self.state = {**parameters, **buffers}
        self._one = [copy.deepcopy(dense[0]).to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of N inputs to mean probabilities [N, K]."""

        def logits(state: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self._one[0], state, (x,))

        return torch.func.vmap(logits)(self.state).float().softmax(-1).mean(0)


class Prediction(Contender):
    """One contender, ready to predict a batch: a dense network, or tickets."""

    known_options = (*OPTIONS, "grouped", "vmapped")

    def __init__(self, case: Case, name: str, device: str) -> None:
        """Build and fold the members; on a GPU they are in bf16.

        Raises:
            Unavailable: an option that is not there.
            InputError: blocks that do not fit the network.
        """
        super().__init__(case, name, device)
        self.members = MEMBERS if self.case.sparsity else 1
        self.x, _ = case.network.inputs(device)
        pairs = foldable(self.case.dense().model())
        found = [self.case.model(seed).to(device) for seed in range(self.members)]
        self.describe(found[0])
        with forced_backend("masked"):
            for model in found:
                estimate_batch_norm(model, [self.x])
        self.right = self._reference(found, torch.float32)
        self.limit = limit(self._lost(found))
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.x = self.x.to(dtype)
        found = [fold(model.eval(), pairs) for model in found]
        for model in found:
            model.to(dtype=dtype, memory_format=torch.channels_last)
            self.rearrange(model)
            for layer in model.modules():
                if isinstance(layer, SparseLayer):
                    layer.ran_on = None  # not that of the statistics
        self.model, self.network = self._together(found)
        if "compiled" in self.options:
            self.network = torch.compile(self.network)

    def _together(self, found: Sequence[nn.Module]) -> tuple[nn.Module, nn.Module]:
        """Return the model whose layers run, and the network that predicts."""
        if "vmapped" in self.options:
            if self.kind != "masked":
                raise Unavailable("only masked tickets, which are dense, can be vmapped")
            return found[0], Stacked(found)
        network = TicketEnsemble(found, grouped="grouped" in self.options)
        return network.grouped or found[0], network

    def phases(self) -> dict[str, Callable[[], Any]]:
        """Return the one phase."""
        return {PHASE: self.run}

    @torch.no_grad()
    def run(self) -> Tensor:
        """Return the mean probabilities of the batch."""
        if self.replay is not None:
            return self.replay(self.x)
        with forced_backend(self.backend):
            return self.network(self.x)

    @torch.no_grad()
    def capture_prediction(self) -> None:
        """Capture it, which `run` then replays."""
        with forced_backend(self.backend):
            self.capture(self.network, self.x)

    def check(self) -> float:
        """Return the relative error of the probabilities.

        Raises:
            WrongResult: it is too large.
        """
        error = relative_error(self.run().float(), self.right)
        refuse({"probabilities": error}, {"probabilities": self.limit})
        return error

    def _lost(self, models: Sequence[nn.Module]) -> float:
        """Return what the dense library loses in the contender's data type."""
        if self.device != "cuda":
            return 0.0
        return relative_error(self._reference(models, torch.bfloat16), self.right)

    @torch.no_grad()
    def _reference(self, models: Sequence[nn.Module], dtype: torch.dtype) -> Tensor:
        dense = [densify(copy.deepcopy(model)).eval().to(dtype) for model in models]
        return TicketEnsemble(dense)(self.x.to(dtype)).float()
