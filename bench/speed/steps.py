"""Training steps of a variant, with their phases."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.speed.variant import Case, Unavailable, Variant, Workload
from sparse_engine import densify
from sparse_engine.layers.base import SparseLayer
from sparse_engine.sparsity.topology import Topology
from sparse_kernels.dispatch.backend import forced_backend


class Step(Workload):
    """A variant that takes training steps with SGD on one batch."""

    loss: Tensor | None = None

    def __init__(self, case: Case, variant: Variant, device: str) -> None:
        """Build the network and its optimizer.

        Raises:
            Unavailable: a variant of predictions.
            InputError: blocks that do not fit the network.
        """
        super().__init__(case, variant, device)
        if variant.grouped or variant.vmapped:
            raise Unavailable("training steps are neither grouped nor vmapped")
        model = self.case.model()
        self.describe(model)
        self.layouts = {
            name: layer.layout.to(device)
            for name, layer in model.named_modules()
            if isinstance(layer, SparseLayer)
        }
        masked = variant.kind == "mask-multiply"
        self.model = densify(model) if masked else model
        self.model.to(device=device, memory_format=torch.channels_last).train()
        self.masks = self._masks() if masked else []
        self.x, self.y = case.network.inputs(device)
        self.rearrange(self.model)
        parameters = self.model.parameters()
        self.optimizer = torch.optim.SGD(
            parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
        )
        self.network = torch.compile(self.model) if variant.compiled else self.model

    def phases(self) -> dict[str, Callable[[], Any]]:
        """Return what a step does in order, by name: one phase where it is captured whole."""
        if self.replay is not None:
            return {"step": self.run}
        return {"forward": self.forward, "backward": self.backward, "optimizer": self.optimize}

    def updating_phases(self, rule: str = "rigl") -> dict[str, Callable[[], Any]]:
        """Return a step that collects what a rule asks for, and the topology update after it."""
        topology = Topology(self.model, self.optimizer, rule)

        def armed_step() -> None:
            topology.arm()
            self.run()

        return {"armed step": armed_step, "topology update": lambda: topology.update(0.3)}

    def run(self) -> None:
        """Take one step."""
        if self.replay is not None:
            self.replay(self.x, self.y)
            return
        self.forward()
        self.backward()
        self.optimize()

    def capture(self) -> None:
        """Capture the whole step, which `run` then replays.

        Raises:
            Unavailable: there is no GPU.
        """
        self.loss = None  # see backward

        def step(x: Tensor, y: Tensor) -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss(x, y)
            loss.backward()
            self.optimize()
            return loss.detach()

        with forced_backend(self.variant.backend):
            self.record(step, self.x, self.y)

    def forward(self) -> None:
        """Forget the gradients and compute the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with forced_backend(self.variant.backend):
            self.loss = self._loss(self.x, self.y)

    def backward(self) -> None:
        """Compute the gradients, and let go of the loss.

        Its graph holds the nodes that accumulate gradients, each bound to the stream it was made
        on: in a capture they would make the default stream wait, which ends the capture.
        """
        loss, self.loss = self.loss, None
        with forced_backend(self.variant.backend):
            loss.backward()

    def optimize(self) -> None:
        """Change the weights, and mask them where the variant does."""
        self.optimizer.step()
        with torch.no_grad():
            for weight, mask in self.masks:
                weight.mul_(mask)

    def state_bytes(self) -> int:
        """Return the bytes of parameters, gradients, optimizer state and lists of blocks.

        After a step.
        """
        tensors = [t for p in self.model.parameters() for t in (p, p.grad) if t is not None]
        states = self.optimizer.state.values()
        tensors += [t for state in states for t in state.values() if isinstance(t, Tensor)]
        layers = [m for m in self.model.modules() if isinstance(m, SparseLayer)]
        return sum(t.nbytes for t in tensors) + sum(layer.index_bytes for layer in layers)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return F.cross_entropy(self.network(x), y)

    def _masks(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Return the sparse layers' weights, dense here, and masks of their shapes."""
        weights = [self.model.get_submodule(name).weight for name in self.layouts]
        return [(weight, (weight != 0).to(weight.dtype)) for weight in weights]
