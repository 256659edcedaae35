"""Which channels of a network are one and the same, and may be put in another order together.

The channels that a convolution writes are those of the norm behind it, of a residual that is added
and of every layer that reads them: permuted alike in all of them, the network computes the same.
A walk along its graph ties them; what reads channels in a way that is not known, and what comes
from outside or goes there, keeps its order (Fang et al., DepGraph, CVPR 2023, section 3).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.candidates import shared_parameters
from sparse_engine.layers.dense_kinds import LINEARS
from sparse_engine.layers.modules import SparseConv2d, SparseLinear
from sparse_engine.layers.rows import RowsConv2d
from sparse_engine.layers.tracing import is_channelwise, is_flatten, is_pixel_mean, is_pool, traced
from sparse_engine.models.fused import unfused

_CONVOLUTIONS = (nn.Conv2d, RowsConv2d, SparseConv2d)
_LINEARS = (*LINEARS, SparseLinear)
_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor of the dense state dict that runs over a group's channels.

    repeat: entries of a channel, side by side: what a flattened image has of each.
    """

    tensor: str
    dimension: int
    repeat: int = 1


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that may be put in another order, along all of these axes at once."""

    channels: int
    axes: tuple[Axis, ...]


def channel_groups(model: nn.Module) -> list[ChannelGroup]:
    """Return the groups of channels of a model whose order is free, in the order of the network.

    Args:
        model: dense or sparse, on any device; a sparse layer's weight is its dense weight. Groups
            are those that training and evaluation share.

    Raises:
        InputError: a forward that torch.fx cannot trace.
    """
    modes = {module: module.training for module in model.modules()}
    found = []
    try:
        for mode in (True, False):
            with unfused(model):
                graph = traced(model.train(mode), "permuted in its channels")
            found.append(_Walk(model).run(graph))
    finally:
        for module, mode in modes.items():
            module.training = mode
    evaluation = {frozenset(group.axes) for group in found[1]}
    return [group for group in found[0] if frozenset(group.axes) in evaluation]


class _Channels:
    """A set of channels, which others are tied to."""

    def __init__(self, count: int, axes: Iterable[Axis] = (), is_free: bool = True) -> None:
        self.count, self.axes, self.is_free = count, list(axes), is_free
        self.parent: _Channels | None = None

    def root(self) -> _Channels:
        return self if self.parent is None else self.parent.root()

    def tie(self, other: _Channels) -> None:
        first, second = self.root(), other.root()
        if first is second:
            return
        if first.count != second.count:
            first.is_free = second.is_free = False
            return
        second.parent = first
        first.axes += second.axes
        first.is_free &= second.is_free

    def fix(self) -> None:
        self.root().is_free = False


class _Signal(NamedTuple):
    """What a node gives: channels, and where they lie.

    In dimension 1 of "images" [N, C, H, W]; in the last of "vectors" [N, C], of "flat" images, with
    several entries a channel, and of "tokens" [..., C].
    """

    channels: _Channels
    kind: str


class _Walk:
    """One walk along a graph."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.signals: dict[fx.Node, _Signal] = {}
        self.of_layer: dict[str, list[_Channels]] = defaultdict(list)
        places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
        shared = shared_parameters(model)
        self.strange = {
            module
            for module in model.modules()
            if places[id(module)] > 1 or any(id(p) in shared for p in module._parameters.values())
        }

    def run(self, graph: fx.Graph) -> list[ChannelGroup]:
        # What a graph reads without its layer is fixed first: the layer may come before.
        self.read = {n.target.rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
        for node in graph.nodes:
            self.signals[node] = self._signal(node)
        found = [channels for layer in self.of_layer.values() for channels in layer]
        roots = dict.fromkeys(channels.root() for channels in found)
        return [
            ChannelGroup(root.count, tuple(root.axes))
            for root in roots
            if root.is_free and root.count > 1
        ]

    def _signal(self, node: fx.Node) -> _Signal:
        module = self.model.get_submodule(node.target) if node.op == "call_module" else None
        inputs = [self.signals[n] for n in node.all_input_nodes]
        if is_channelwise(node, module):
            # Two dimensions of anything but images are no pixels.
            apart = is_pool(node, module) and any(x.kind != "images" for x in inputs)
            return self._fixed(*inputs) if apart else self._tied(inputs)
        if len(inputs) != 1:
            return self._fixed(*inputs)
        (x,) = inputs
        if is_flatten(node, module):
            return self._flattened(x)
        if is_pixel_mean(node) and x.kind == "images":
            return _Signal(x.channels, "images" if node.kwargs.get("keepdim") else "vectors")
        if module is not None and self._is_usual(node.target, module):
            if type(module) in _CONVOLUTIONS:
                return self._convolution(node.target, module, x)
            if type(module) in _LINEARS:
                return self._linear(node.target, module, x)
            if isinstance(module, _NORMS):
                return self._norm(node.target, module, x)
        return self._fixed(x)

    def _is_usual(self, name: str, module: nn.Module) -> bool:
        """Return whether a layer is called once, and nothing else has or reads its weight."""
        if name in self.of_layer:
            for channels in self.of_layer[name]:
                channels.fix()
            return False
        whole = isinstance(module, (SparseLayer, *_NORMS)) or "weight" in module._parameters
        return whole and name not in self.read and module not in self.strange

    def _fixed(self, *signals: _Signal) -> _Signal:
        for signal in signals:
            signal.channels.fix()
        return _Signal(_Channels(0, is_free=False), "unknown")

    def _tied(self, signals: Sequence[_Signal]) -> _Signal:
        if len({signal.kind for signal in signals}) != 1:
            return self._fixed(*signals)
        for other in signals[1:]:
            signals[0].channels.tie(other.channels)
        return signals[0]

    def _flattened(self, x: _Signal) -> _Signal:
        if x.kind in ("vectors", "flat"):
            return x
        if x.kind != "images":
            x.channels.fix()
        return _Signal(x.channels, "flat")

    def _convolution(self, name: str, layer: Any, x: _Signal) -> _Signal:
        if x.kind != "images":
            x.channels.fix()
        if layer.groups == 1:
            return self._layer(name, layer, x, layer.in_channels, layer.out_channels, "images")
        if layer.groups == layer.in_channels == layer.out_channels == x.channels.count:
            return self._of_each_channel(name, layer, x)
        return self._fixed(x)

    def _linear(self, name: str, layer: Any, x: _Signal) -> _Signal:
        if x.kind == "images":
            x.channels.fix()
        kind = "vectors" if x.kind in ("vectors", "flat") else "tokens"
        return self._layer(name, layer, x, layer.in_features, layer.out_features, kind)

    def _layer(
        self, name: str, layer: Any, x: _Signal, entries: int, count: int, kind: str
    ) -> _Signal:
        """Tie the channels that a layer reads, and return those that it writes."""
        repeat = entries // x.channels.count if x.kind == "flat" and x.channels.count else 1
        x.channels.tie(self._new(name, entries // repeat, [Axis(f"{name}.weight", 1, repeat)]))
        parts = ("weight",) if layer.bias is None else ("weight", "bias")
        return _Signal(self._new(name, count, [Axis(f"{name}.{p}", 0) for p in parts]), kind)

    def _norm(self, name: str, norm: Any, x: _Signal) -> _Signal:
        count = x.channels.count
        if isinstance(norm, _BatchNorm):
            fits = x.kind in ("images", "vectors") and norm.num_features == count
        elif isinstance(norm, nn.GroupNorm):
            fits = x.kind == "images" and norm.num_channels == count
            fits = fits and norm.num_groups in (1, count)
        else:
            fits = x.kind in ("vectors", "tokens") and tuple(norm.normalized_shape) == (count,)
        if fits:
            return self._of_each_channel(name, norm, x)
        x.channels.fix()
        return x

    def _of_each_channel(self, name: str, module: nn.Module, x: _Signal) -> _Signal:
        """Tie a module with a number for each channel, or several, to the channels it is given."""
        names = ("weight", "bias", "running_mean", "running_var")
        held = [n for n in names if isinstance(getattr(module, n, None), Tensor)]
        axes = [Axis(f"{name}.{n}", 0) for n in held]
        x.channels.tie(self._new(name, x.channels.count, axes))
        return x

    def _new(self, name: str, count: int, axes: Iterable[Axis]) -> _Channels:
        """Return the channels that some tensors of a layer have."""
        self.of_layer[name].append(_Channels(count, axes))
        return self.of_layer[name][-1]
