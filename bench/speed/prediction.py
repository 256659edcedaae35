"""A variant's prediction of one batch: by a dense network, or by tickets.

Tickets run one after another, or grouped as one network of one launch a layer, or vmapped, as dense
weights stacked by torch.func, as is usual elsewhere. Batch norms are folded where that is possible,
in the dense network too.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bench.speed.correctness import limit, refuse, relative_error
from bench.speed.variant import Case, Unavailable, Variant, Workload
from sparse_engine import TicketEnsemble, densify
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.batch_norm import estimate_batch_norm
from sparse_engine.layers.modules import SparseConv2d
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


class Prediction(Workload):
    """A variant that predicts a batch: a dense network, or tickets."""

    def __init__(self, case: Case, variant: Variant, device: str) -> None:
        """Build and fold the members; on a GPU they are in bf16.

        Raises:
            Unavailable: tickets that cannot be vmapped, or autocast.
            InputError: blocks that do not fit the network.
        """
        super().__init__(case, variant, device)
        if variant.bf16:
            raise Unavailable("predictions are not timed under autocast")
        self.members = MEMBERS if self.case.sparsity and not self.case.slim else 1
        self.x, _ = case.network.inputs(device)
        pairs = foldable(self.case.dense().model())
        models = [self.case.model(seed).to(device) for seed in range(self.members)]
        self.describe(models[0])
        with forced_backend("masked"):
            for model in models:
                estimate_batch_norm(model, [self.x])
        self.right = self._reference(models, torch.float32)
        self.limit = limit(self._lost(models))
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.x = self.x.to(dtype)
        models = [fold(model.eval(), pairs) for model in models]
        for model in models:
            model.to(dtype=dtype, memory_format=torch.channels_last)
            self.rearrange(model)
            for layer in model.modules():
                if isinstance(layer, SparseLayer):
                    layer.ran_on = None  # not that of the statistics
        self.model, network = self._together(models)
        self.network = torch.compile(network) if variant.compiled else network

    def _together(self, models: Sequence[nn.Module]) -> tuple[nn.Module, nn.Module]:
        """Return the model whose layers run, and the network that predicts."""
        if self.variant.vmapped:
            if self.variant.kind != "masked":
                raise Unavailable("only masked tickets, which are dense, can be vmapped")
            return models[0], Stacked(models)
        network = TicketEnsemble(models, grouped=self.variant.grouped)
        return network.grouped or models[0], network

    def phases(self) -> dict[str, Callable[[], Any]]:
        """Return the one phase."""
        return {PHASE: self.run}

    @torch.no_grad()
    def run(self) -> Tensor:
        """Return the mean probabilities of the batch."""
        if self.replay is not None:
            return self.replay(self.x)
        with forced_backend(self.variant.backend):
            return self.network(self.x)

    @torch.no_grad()
    def capture(self) -> None:
        """Capture the prediction, which `run` then replays.

        Raises:
            Unavailable: there is no GPU.
        """
        with forced_backend(self.variant.backend):
            self.record(self.network, self.x)

    def check(self) -> float:
        """Return the relative error of the probabilities.

        Raises:
            WrongResult: it is too large.
        """
        error = relative_error(self.run().float(), self.right)
        refuse({"probabilities": error}, {"probabilities": self.limit})
        return error

    def _lost(self, models: Sequence[nn.Module]) -> float:
        """Return what the dense library loses in the variant's data type."""
        if self.device != "cuda":
            return 0.0
        return relative_error(self._reference(models, torch.bfloat16), self.right)

    @torch.no_grad()
    def _reference(self, models: Sequence[nn.Module], dtype: torch.dtype) -> Tensor:
        dense = [densify(copy.deepcopy(model)).eval().to(dtype) for model in models]
        return TicketEnsemble(dense)(self.x.to(dtype)).float()


def foldable(model: nn.Module) -> list[tuple[str, str]]:
    """Return the names of a dense model's convolutions that only a batch norm reads, and of it.

    A model whose forward cannot be traced has none.
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except (TypeError, ValueError, fx.proxy.TraceError):
        return []
    modules, pairs = dict(model.named_modules()), []
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        names = str(source.target), str(node.target)
        kinds = type(modules[names[0]]), type(modules[names[1]])
        if kinds == (nn.Conv2d, nn.BatchNorm2d) and len(source.users) == 1:
            pairs.append(names)
    return pairs


@torch.no_grad()
def fold(model: nn.Module, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """Fold the norms of `foldable` into a model in eval mode, dense or sparse, in place.

    Source: Jacob et al. 2018, section 3.2. A norm after an addition, as the first one of a
    pre-activation block, has no convolution to go into and stays.
    """
    for name, norm in pairs:
        layer = model.get_submodule(name)
        sparse = isinstance(layer, SparseLayer)
        folded = fuse_conv_bn_eval(layer.to_dense() if sparse else layer, model.get_submodule(norm))
        if sparse:
            folded = SparseConv2d.from_dense(folded, layout=layer.layout)
        model.set_submodule(name, folded)
        model.set_submodule(norm, nn.Identity())
    return model
