"""group: members of one architecture as one network, whose every layer is one launch.

The first member's graph is traced (torch.fx) and copied; layers are replaced by those of all
members (stacking.py), and what works on each channel or number by itself is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.modules import SparseConv2d
from sparse_engine.layers.rows import is_in_rows, to_rows
from sparse_engine.layers.tracing import LAYERS, is_channelwise, is_flatten, is_pixel_mean, traced
from sparse_engine.models.grouped.layers import JoinInputs, Replicate, Restride, SplitLogits
from sparse_engine.models.grouped.stacking import (
    UNGROUPED,
    MemberSlices,
    stack_convolutions,
    stack_linears,
    stack_norms,
    stack_sparse,
)


def group(models: Sequence[nn.Module], shared_input: bool = True) -> fx.GraphModule:
    """Return members as one network that maps images to the logits [M, N, K] of each.

    Every sparse layer is one launch of the kernels, every dense one a grouped convolution or a
    batched product, every batch norm one over the channels of all. Results are those of the members
    within rounding, in training as well. Weights are copied; a member's are a slice of its layer's.

    Args:
        models: of one architecture, made of convolutions, linear layers, batch norms, pooling and
            element-wise operators, in the same mode. Sparse ones may differ in which blocks they
            have, and in how many.
        shared_input: all members read the same x [N, C, ...]; else each its own of [M, N, C, ...].

    Raises:
        InputError: members that differ, or a layer that cannot be grouped.
    """
    if not models:
        raise InputError("an ensemble needs at least one member")
    graphs = [_traced(model) for model in models]
    for number, graph in enumerate(graphs[1:], 2):
        if type(models[number - 1]) is not type(models[0]) or str(graph) != str(graphs[0]):
            raise InputError(
                f"member {number} is of another architecture than member 1; {UNGROUPED}"
            )
    if len({model.training for model in models}) > 1:
        raise InputError(
            "some members are in training mode, others not: call eval() on all of them"
        )
    grouped = _Grouping(models, shared_input).run(graphs[0])
    grouped.train(models[0].training)
    return to_rows(grouped) if is_in_rows(models[0]) else grouped


def _traced(model: nn.Module) -> fx.Graph:
    try:
        return traced(model, "grouped")
    except InputError as error:
        raise InputError(f"{error}; {UNGROUPED}") from None


class _Grouping:
    """One walk along a graph: its copy, and how each result's channels lie."""

    def __init__(self, models: Sequence[nn.Module], shared_input: bool) -> None:
        self.models, self.members, self.shared_input = models, len(models), shared_input
        self.graph, self.modules = fx.Graph(), {}
        self.nodes: dict[fx.Node, fx.Node] = {}
        self.slices_of: dict[fx.Node, MemberSlices] = {}
        self.strides = _Strides(models)

    def run(self, graph: fx.Graph) -> fx.GraphModule:
        for node in graph.nodes:
            copied, slices = getattr(self, f"_{node.op}")(node)
            self.nodes[node] = copied
            self.slices_of[copied] = slices
        self.graph.lint()
        return fx.GraphModule(self.modules, self.graph, f"Grouped{type(self.models[0]).__name__}")

    def _placeholder(self, node: fx.Node) -> tuple[fx.Node, MemberSlices]:
        copied = self.graph.node_copy(node)
        if len(self.nodes):
            raise InputError(f"members take several inputs ('{node.name}'); {UNGROUPED}")
        if self.shared_input:
            return copied, MemberSlices(1, 1, True)
        return self._insert("join_inputs", JoinInputs(), copied), MemberSlices(1, 1, False)

    def _output(self, node: fx.Node) -> tuple[fx.Node, MemberSlices]:
        result = self.nodes.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        if result is None or self.slices_of[result].shared:
            raise InputError(f"members must return one tensor of logits; {UNGROUPED}")
        slices = self.slices_of[result]
        split = self._insert("split_logits", SplitLogits(self.members, slices.channels), result)
        return self.graph.output(split), slices

    def _get_attr(self, node: fx.Node) -> tuple[fx.Node, MemberSlices]:
        raise InputError(f"'{node.target}' is read outside of a layer; {UNGROUPED}")

    def _call_module(self, node: fx.Node) -> tuple[fx.Node, MemberSlices]:
        name = str(node.target)
        layers = [model.get_submodule(name) for model in self.models]
        if not isinstance(layers[0], LAYERS):
            if not (is_flatten(node, layers[0]) or is_channelwise(node, layers[0])):
                kind = type(layers[0]).__name__
                raise InputError(f"layer '{name}' ({kind}) cannot be grouped; {UNGROUPED}")
            self.modules[name] = layers[0]
            return self._kept(node)
        if name in self.modules:
            raise InputError(f"layer '{name}' is used twice; {UNGROUPED}")
        _check_alike(name, layers)
        x, slices = self._layer_input(node, layers)
        self.modules[name], after = self._stacked(name, layers, slices)
        return self.graph.call_module(name, (x,)), after

    def _call_function(self, node: fx.Node) -> tuple[fx.Node, MemberSlices]:
        return self._called(node, "function", getattr(node.target, "__name__", str(node.target)))

    def _call_method(self, node: fx.Node) -> tuple[fx.Node, MemberSlices]:
        return self._called(node, "method", str(node.target))

    def _called(self, node: fx.Node, kind: str, name: str) -> tuple[fx.Node, MemberSlices]:
        # One image for all members may still be turned into another.
        shared = name == "expand" and self.slices_of[self.nodes[node.all_input_nodes[0]]].shared
        if not (shared or is_channelwise(node) or is_flatten(node) or is_pixel_mean(node)):
            raise InputError(f"{kind} '{name}' cannot be grouped; {UNGROUPED}")
        return self._kept(node)

    def _kept(self, node: fx.Node) -> tuple[fx.Node, MemberSlices]:
        """Copy what treats every channel alike; several inputs are made to lie alike."""
        inputs = {old: self.nodes[old] for old in node.all_input_nodes}
        slices_of = [self.slices_of[new] for new in inputs.values()]
        if len(set(slices_of)) > 1:
            inputs, slices_of = self._aligned(inputs)
        return self.graph.node_copy(node, lambda old: inputs[old]), slices_of[0]

    def _aligned(
        self, inputs: dict[fx.Node, fx.Node]
    ) -> tuple[dict[fx.Node, fx.Node], list[MemberSlices]]:
        slices_of = {old: self.slices_of[new] for old, new in inputs.items()}
        channels = max(slices.channels for slices in slices_of.values())
        wide = {old: slices.times(channels) for old, slices in slices_of.items()}
        stride = max(slices.stride for slices in wide.values())
        aligned = {}
        for old, new in inputs.items():
            new, slices = self._apart(new, wide[old], 1)
            aligned[old] = self._at_stride(new, slices, stride, 1)
        return aligned, [MemberSlices(channels, stride, False)]

    def _layer_input(
        self, node: fx.Node, layers: Sequence[nn.Module]
    ) -> tuple[fx.Node, MemberSlices]:
        """Return a layer's input as the layer can read it."""
        x = self.nodes[node.all_input_nodes[0]]
        first = layers[0]
        slices = self.slices_of[x].times(_channels(first, 1))
        grouped = isinstance(first, nn.Conv2d) and first.groups > 1
        dimension = 1 if isinstance(first, nn.Conv2d | SparseConv2d | _BatchNorm) else -1
        if isinstance(first, _BatchNorm) or grouped:
            x, slices = self._apart(x, slices, dimension)
        sparse = next((layer for layer in layers if isinstance(layer, SparseLayer)), None)
        if sparse is not None and not slices.shared:
            stride = -(-slices.stride // sparse.block[1]) * sparse.block[1]
            x, slices = (
                self._at_stride(x, slices, stride, dimension),
                slices._replace(stride=stride),
            )
        return x, slices

    def _stacked(
        self, name: str, layers: Sequence[Any], slices: MemberSlices
    ) -> tuple[nn.Module, MemberSlices]:
        first = layers[0]
        if isinstance(first, _BatchNorm):
            return stack_norms(layers, slices.stride), slices
        stride = self.strides(_channels(first, 0))
        if any(isinstance(layer, SparseLayer) for layer in layers):
            return stack_sparse(name, layers, slices, stride)
        if isinstance(first, nn.Conv2d):
            if first.groups == first.out_channels == first.in_channels:
                stride = slices.stride
            return stack_convolutions(name, layers, slices, stride)
        return stack_linears(layers, slices, stride)

    def _apart(
        self, x: fx.Node, slices: MemberSlices, dimension: int
    ) -> tuple[fx.Node, MemberSlices]:
        if not slices.shared:
            return x, slices
        x = self._insert(f"{x.name}_replicate", Replicate(self.members, dimension), x)
        return x, slices._replace(shared=False)

    def _at_stride(self, x: fx.Node, slices: MemberSlices, stride: int, dimension: int) -> fx.Node:
        if slices.stride == stride:
            return x
        return self._insert(f"{x.name}_restride", Restride(self.members, stride, dimension), x)

    def _insert(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        while name in self.modules:
            name += "_"
        self.modules[name] = module
        return self.graph.call_module(name, (x,))


class _Strides:
    """The stride of a width: a multiple of all blocks that write or read so many channels."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.units: dict[int, int] = {}
        for model in models:
            for layer in model.modules():
                if isinstance(layer, SparseLayer):
                    for width, size in zip(layer.layout.shape, layer.block):
                        self.units[width] = math.lcm(self.units.get(width, 1), size)

    def __call__(self, width: int) -> int:
        unit = self.units.get(width, 1)
        return -(-width // unit) * unit


def _channels(layer: Any, dimension: int) -> int:
    """Return a layer's output (0) or input (1) channels."""
    if isinstance(layer, _BatchNorm):
        return layer.num_features
    if isinstance(layer, SparseLayer):
        return layer.layout.shape[dimension]
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features)[dimension]
    return (layer.out_channels, layer.in_channels)[dimension]


def _check_alike(name: str, layers: Sequence[Any]) -> None:
    """Raise InputError unless members' layers do the same with their own weights."""
    for number, layer in enumerate(layers[1:], 2):
        for what, first, own in zip(("settings", "data type"), _facts(layers[0]), _facts(layer)):
            if first != own:
                raise InputError(
                    f"layer '{name}' has other {what} in member {number} than in member 1 "
                    f"({own} and {first}); {UNGROUPED}"
                )


def _facts(layer: Any) -> tuple[Any, Any]:
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    names += ("eps", "momentum", "affine", "track_running_stats")
    sizes = (_channels(layer, 0), _channels(layer, 1), getattr(layer, "bias", None) is not None)
    settings = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    tensor = next((t for t in layer.parameters()), None)
    return (sizes, settings), None if tensor is None else tensor.dtype
