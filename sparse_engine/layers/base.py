"""SparseLayer: what SparseConv2d and SparseLinear share."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import earlier_name
from sparse_engine.layers.blocks import BlockChoice
from sparse_engine.layers.data_types import check_data_type
from sparse_engine.layers.ids.agreement import AgreedBlockIds
from sparse_engine.layers.layer_state import StateError, own_state
from sparse_engine.layers.leaf import Leaf
from sparse_engine.layers.plan import LayerPlan
from sparse_engine.layers.sharded_gradients import probe_kind
from sparse_engine.layers.unrecorded import is_traced
from sparse_engine.layers.weight.kept_weight import KeptWeight
from sparse_engine.layers.weight.weight_writes import open_weight
from sparse_engine.shards import check_whole, own_part, write_
from sparse_kernels import BlockLayout
from sparse_kernels.dispatch.backend import backend_of
from sparse_kernels.layout import Taps
from sparse_kernels.memory_order import order_of
from sparse_kernels.operators.dense_gradient import DenseGradientProbe
from sparse_kernels.operators.reference import gather_blocks, scatter_blocks
from sparse_kernels.transforms import is_transformed

WEIGHT_READ = "dense (weight read)"
# PyTorch's modules that read weights, and take no fast path where one overrides torch functions.
READERS = ("torch.nn.modules.transformer", "torch.nn.modules.activation")


class SparseLayer(Leaf, KeptWeight, AgreedBlockIds):
    """What the sparse layers share: compact values [Z, BC, BO], where they lie, and a bias.

    A state dict holds `values`, `block_ids` and `bias`; one with a dense `weight` loads as well and
    keeps the strongest blocks by L1 norm, as many as the layer has. The layout's index lists are no
    buffers: DDP would broadcast them at every step.
    """

    final_active: int | None = None  # blocks after gradual pruning, where a rule prunes

    values: nn.Parameter
    bias: nn.Parameter | None
    ran_on: str | None = None
    """What its first forward ran on, and whether it copied its input; WEIGHT_READ if other code
    has only read its weight; None before."""

    def _make(
        self,
        shape: Sequence[int],
        bias: bool,
        device: Any,
        dtype: Any,
        density: float,
        block: BlockChoice,
        generator: torch.Generator | None,
        layout: BlockLayout | None,
        taps: Taps = "each",
    ) -> None:
        self._probe: DenseGradientProbe | None = None
        device = torch.get_default_device() if device is None else torch.device(device)
        if layout is None:
            layout = LayerPlan.full("", shape, block, taps).at(density).random(generator)
        self._hold(layout, device)
        bo, bc = layout.block
        self.values = nn.Parameter(torch.empty(layout.slots, bc, bo, device=device, dtype=dtype))
        empty_bias = torch.empty(shape[0], device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if empty_bias is None else nn.Parameter(empty_bias))
        self._move_ids()
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the values that nn.Conv2d and nn.Linear would draw for a dense weight."""
        if self.values.is_meta:
            return
        self._move_ids()
        dense = own_part(self.values).new_empty(self.layout.shape)
        nn.init.kaiming_uniform_(dense, a=math.sqrt(5), generator=generator)
        write_(self.values, gather_blocks(dense, self.layout.tensors(), self.layout.sizes()))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.layout.shape[1:]))
            bias = own_part(self.bias).new_empty(self.bias.shape)
            write_(self.bias, nn.init.uniform_(bias, -bound, bound, generator=generator))

    @property
    def density(self) -> float:
        """Weights in active blocks / all weights; the padding of ragged blocks is no weight."""
        return self.layout.active_weights / math.prod(self.layout.shape)

    @property
    def index_bytes(self) -> int:
        """Bytes of the lists that say where blocks lie: on a CPU 8 for each slot, on a GPU 56, and
        a few for each layer.

        They count the lists that kernels follow and the buffers block_ids and block_check.
        """
        held = (*self._layout.tensors(), self.block_ids, self.block_check)
        return sum(t.nbytes for t in held)

    @property
    def block(self) -> tuple[int, int]:
        """(BO, BC), after clamping to the layer's channels."""
        return self._layout.block

    @property
    def taps(self) -> str:
        """Whether "each" tap of a pair has a fate of its own, each "row" of taps, or "all"."""
        return self._layout.taps

    def dense_weight(self) -> Tensor:
        """Return the weight [O, C, R, S] or [O, C], zero outside the blocks; differentiable.

        InputError where the values are cut up among processes (FSDP2, outside of forward).
        """
        check_whole(self.values, self)
        values = self.values if self._probe is None else self._probe.view(self.values)
        layout = self.layout
        index = layout.tensors()
        if is_transformed():  # where autograd would not notice lists that are written to later
            index = [tensor.clone() for tensor in index]
        dense = scatter_blocks(values, index, layout.sizes())
        if self._probe is not None:
            dense = self._probe.observe_weight(dense, values)
        return self.to_weight(dense)

    @property
    def weight(self) -> Tensor:
        """dense_weight(), for code that reads a layer's weight or writes to it in place.

        Under torch.no_grad() `values` take what is written (LayerWeight). It cannot be assigned.
        """
        if torch.compiler.is_compiling():
            return self.dense_weight()
        if self.ran_on is None:
            self.ran_on = WEIGHT_READ
        if is_traced() or sys._getframe(1).f_globals.get("__name__") in READERS:
            return self.dense_weight()
        is_recorded = torch.is_grad_enabled()
        # Tensors made in inference mode do not count who writes to them.
        with torch.inference_mode(False), torch.set_grad_enabled(is_recorded):
            return open_weight(self.dense_weight(), self)

    def collect(
        self,
        memory: float = 1.0,
        scores: Tensor | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        accumulate: bool = True,
    ) -> None:
        """From now on collect the L1 norms of the dense gradient by block.

        Args:
            memory: factor of earlier scores; below 1 a layer that collects goes on.
            scores: [OB * CB * R * S], of backward passes before.
            reduce: makes of the dense gradient the one that is scored.
            accumulate: True holds the dense gradient that belongs to `values.grad`, in loops of
                any kind. False scores and frees it in backward, which is right where every step
                is one backward pass.
        """
        if self._probe is None or memory == 1.0:
            self.stop()
            kind = probe_kind(self.values, accumulate)
            self._probe = kind(self.layout, self.values, memory, reduce)
            self._probe.scores = scores

    @property
    def probe(self) -> DenseGradientProbe | None:
        """What collects, None where nothing does."""
        return self._probe

    @property
    def is_collecting(self) -> bool:
        """Whether the next backward collects scores."""
        return self._probe is not None

    @property
    def collected(self) -> Tensor | None:
        """The scores since collect(), those of present gradients included; None without any."""
        return None if self._probe is None else self._probe.collected

    def take_gradient(self) -> Tensor | None:
        """Return the dense gradient [O, C, R, S] that belongs to values.grad, and begin anew.

        None if there is none, or none is held: without accumulate it is scored in backward.
        """
        return None if self._probe is None else self._probe.take()

    def add_scores(self, gradient: Tensor) -> None:
        """Add the block norms of a dense gradient [O, C, R, S] to the scores, while collecting."""
        if self._probe is not None:
            self._probe.add_scores(gradient)

    def stop(self) -> Tensor | None:
        """Stop collecting; return the scores [OB * CB * R * S], None if no backward came by."""
        scores = self.collected
        if self._probe is not None:
            self._probe.close()
        self._probe = None
        return scores

    arm = earlier_name("SparseLayer.arm", collect)
    disarm = earlier_name("SparseLayer.disarm", stop)
    is_armed = property(earlier_name("SparseLayer.is_armed", is_collecting.fget))

    def _note_run(self, x: Tensor, positions: int) -> None:
        """Remember, for the report, what a layer with input x runs on."""
        known = self.ran_on not in (None, WEIGHT_READ)
        if known or torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta:
            return
        backend = backend_of(x, self._layout.tensors(), self._layout.sizes(), positions)
        copied = backend != "masked" and x.ndim == 4 and order_of(x) == "contiguous"
        self.ran_on = backend + (", copied from NCHW" if copied else "")

    def _weight_shape(self) -> tuple[int, ...]:
        return self._layout.shape

    def to_weight(self, dense: Tensor) -> Tensor:
        """Return a tensor [O, C, R, S] as the layer's `weight` has it, in as many dimensions."""
        return dense.reshape(self._weight_shape())

    def from_weight(self, weight: Tensor) -> Tensor:
        """Return a tensor of the shape of `weight` as [O, C, R, S]."""
        return weight.reshape(self._layout.shape)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        if self.block_ids.is_meta:
            self._move_ids()
        try:
            own = own_state(self, self._layout, state_dict, prefix)
        except StateError as error:
            error_msgs.append(f"{prefix}{error}")
            return
        super()._load_from_state_dict(
            own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._move_ids()

    def _apply(self, fn: Any, recurse: bool = True) -> SparseLayer:
        def checked(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            if tensor.is_floating_point():
                check_data_type(new.dtype)
            return new

        super()._apply(checked, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_probe": None}

    def _describe_blocks(self) -> str:
        taps = f", taps='{self.taps}'" if self.layout.group > 1 else ""
        size = self.values.nbytes + self.index_bytes
        ran_on = f", ran_on='{self.ran_on}'" if self.ran_on else ""
        return (
            f"density={self.density:.4g}, block={self.block}{taps}, "
            f"blocks={self.layout.active}/{self.layout.total}, bytes={size}{ran_on}"
        )


def weight_parameter(layer: nn.Module) -> nn.Parameter:
    """Return the parameter that holds a layer's weight."""
    return layer.values if isinstance(layer, SparseLayer) else layer.weight
