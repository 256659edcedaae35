"""group: members of one architecture as one network, whose every layer is one launch.

The first member's graph is traced (torch.fx) and copied; layers are replaced by those of all
members (layers.py), and what works on each channel or number by itself is kept.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.modules import GEOMETRY, SparseConv2d
from sparse_engine.layers.rows import is_in_rows, to_rows
from sparse_engine.layers.tracing import LAYERS, is_channelwise, is_flatten, is_pixel_mean, traced
from sparse_engine.models.grouped.layers import (
    clear_columns,
    grouped_convolution,
    grouped_linear,
    grouped_norm,
    grouped_sparse,
)
from sparse_engine.models.grouped.slices import (
    UNGROUPED,
    JoinInputs,
    MemberSlices,
    Replicate,
    Restride,
    SplitLogits,
)

# What members' layers must have in common.
SETTINGS = (
    *(*GEOMETRY, "in_features", "out_features"),
    *("num_features", "eps", "momentum", "affine", "track_running_stats"),
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


class _Result(NamedTuple):
    """A node of the copy, and how the channels of its result lie."""

    node: fx.Node
    slices: MemberSlices


class _Grouping:
    """One walk along a graph, which copies it: methods are named after the kinds of nodes."""

    def __init__(self, models: Sequence[nn.Module], shared_input: bool) -> None:
        self.models, self.members, self.shared_input = models, len(models), shared_input
        self.graph, self.modules = fx.Graph(), {}
        self.results: dict[fx.Node, _Result] = {}
        self.units = _units(models)

    def run(self, graph: fx.Graph) -> fx.GraphModule:
        for node in graph.nodes:
            self.results[node] = getattr(self, f"_{node.op}")(node)
        self.graph.lint()
        return fx.GraphModule(self.modules, self.graph, f"Grouped{type(self.models[0]).__name__}")

    def _placeholder(self, node: fx.Node) -> _Result:
        if self.results:
            raise InputError(f"members take several inputs ('{node.name}'); {UNGROUPED}")
        x = _Result(self.graph.node_copy(node), MemberSlices(1, 1, self.shared_input))
        return x if self.shared_input else self._insert("join_inputs", JoinInputs(), x)

    def _output(self, node: fx.Node) -> _Result:
        result = self.results.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        if result is None or result.slices.shared:
            raise InputError(f"members must return one tensor of logits; {UNGROUPED}")
        split = SplitLogits(self.members, result.slices.channels)
        logits = self._insert("split_logits", split, result)
        return logits._replace(node=self.graph.output(logits.node))

    def _get_attr(self, node: fx.Node) -> _Result:
        raise InputError(f"'{node.target}' is read outside of a layer; {UNGROUPED}")

    def _call_module(self, node: fx.Node) -> _Result:
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
        x = self._layer_input(self.results[node.all_input_nodes[0]], layers)
        self.modules[name], slices = self._grouped(name, layers, x.slices)
        return _Result(self.graph.call_module(name, (x.node,)), slices)

    def _call_function(self, node: fx.Node) -> _Result:
        name = getattr(node.target, "__name__", str(node.target))
        # One image for all members may still be turned into another.
        shared = name == "expand" and self.results[node.all_input_nodes[0]].slices.shared
        if not (shared or is_channelwise(node) or is_flatten(node) or is_pixel_mean(node)):
            kind = node.op.removeprefix("call_")
            raise InputError(f"{kind} '{name}' cannot be grouped; {UNGROUPED}")
        return self._kept(node)

    _call_method = _call_function

    def _kept(self, node: fx.Node) -> _Result:
        """Copy what treats every channel alike; several inputs are made to lie alike."""
        inputs = {old: self.results[old] for old in node.all_input_nodes}
        if len({x.slices for x in inputs.values()}) > 1:
            inputs = self._aligned(inputs)
        copied = self.graph.node_copy(node, lambda old: inputs[old].node)
        return _Result(copied, inputs[node.all_input_nodes[0]].slices)

    def _aligned(self, inputs: Mapping[fx.Node, _Result]) -> dict[fx.Node, _Result]:
        channels = max(x.slices.channels for x in inputs.values())
        wide = {old: x._replace(slices=x.slices.times(channels)) for old, x in inputs.items()}
        stride = max(x.slices.stride for x in wide.values())
        return {old: self._at_stride(self._apart(x, 1), stride, 1) for old, x in wide.items()}

    def _layer_input(self, x: _Result, layers: Sequence[nn.Module]) -> _Result:
        """Return a layer's input as the layer can read it."""
        first = layers[0]
        x = x._replace(slices=x.slices.times(_channels(first, 1)))
        dimension = 1 if isinstance(first, nn.Conv2d | SparseConv2d | _BatchNorm) else -1
        if isinstance(first, _BatchNorm) or (isinstance(first, nn.Conv2d) and first.groups > 1):
            x = self._apart(x, dimension)
        sparse = next((layer for layer in layers if isinstance(layer, SparseLayer)), None)
        if sparse is None or x.slices.shared:
            return x
        return self._at_stride(x, _round_up(x.slices.stride, sparse.block[1]), dimension)

    def _grouped(
        self, name: str, layers: Sequence[Any], given: MemberSlices
    ) -> tuple[nn.Module, MemberSlices]:
        """Return members' layers as one, and how its output lies."""
        first = layers[0]
        if isinstance(first, _BatchNorm):
            return grouped_norm(layers, given.stride), given
        channels = _channels(first, 0)
        stride = _round_up(channels, self.units[channels])
        if any(isinstance(layer, SparseLayer) for layer in layers):
            grouped: nn.Module = grouped_sparse(name, layers, given, stride)
        elif isinstance(first, nn.Conv2d):
            if first.groups == first.out_channels == first.in_channels:
                stride = given.stride
            grouped = grouped_convolution(name, layers, given, stride)
        else:
            grouped = grouped_linear(layers, given, stride)
        if not given.shared and given.stride > given.channels and getattr(first, "groups", 1) == 1:
            grouped.register_forward_pre_hook(partial(clear_columns, given.channels, given.stride))
        return grouped, MemberSlices(channels, stride, False)

    def _apart(self, x: _Result, dimension: int) -> _Result:
        if not x.slices.shared:
            return x
        module = Replicate(self.members, dimension)
        return self._insert(f"{x.node.name}_replicate", module, x, shared=False)

    def _at_stride(self, x: _Result, stride: int, dimension: int) -> _Result:
        if x.slices.stride == stride:
            return x
        module = Restride(self.members, stride, dimension)
        return self._insert(f"{x.node.name}_restride", module, x, stride=stride)

    def _insert(self, name: str, module: nn.Module, x: _Result, **changed: Any) -> _Result:
        """Put a module behind a node, which changes something of how the channels lie."""
        while name in self.modules:
            name += "_"
        self.modules[name] = module
        return _Result(self.graph.call_module(name, (x.node,)), x.slices._replace(**changed))


def _units(models: Sequence[nn.Module]) -> Mapping[int, int]:
    """Return what a stride is a multiple of, by width: all blocks that write or read so many."""
    units: dict[int, int] = defaultdict(lambda: 1)
    for layer in (layer for model in models for layer in model.modules()):
        if isinstance(layer, SparseLayer):
            for width, size in zip(layer.layout.shape, layer.block):
                units[width] = math.lcm(units[width], size)
    return units


def _round_up(channels: int, unit: int) -> int:
    return -(-channels // unit) * unit


def _channels(layer: Any, dimension: int) -> int:
    """Return a layer's output (0) or input (1) channels."""
    side = ("out", "in")[dimension]
    names = (f"{side}_channels", f"{side}_features", "num_features")
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def _check_alike(name: str, layers: Sequence[Any]) -> None:
    """Raise InputError unless members' layers do the same with their own weights."""
    first = _facts(layers[0])
    for number, layer in enumerate(layers[1:], 2):
        for what, own in _facts(layer).items():
            if own != first[what]:
                raise InputError(
                    f"layer '{name}' has another {what} in member {number} than in member 1 "
                    f"({own} and {first[what]}); {UNGROUPED}"
                )


def _facts(layer: Any) -> dict[str, Any]:
    settings = {name: getattr(layer, name, None) for name in SETTINGS}
    dtype = getattr(next(layer.parameters(), None), "dtype", None)
    return {**settings, "bias": getattr(layer, "bias", None) is not None, "data type": dtype}
