"""sparsify and densify: whole models to sparse layers and back, in place."""

import math
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sparse_engine.errors import InputError, nearest, warn_renamed
from sparse_engine.layers.attention import ProjectedAttention
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.blocks import LayerBlocks
from sparse_engine.layers.candidates import changeable, dense_layers, skip_layers, skip_reasons
from sparse_engine.layers.data_types import check_data_types
from sparse_engine.layers.dense_kinds import is_own_class, planned, planned_shape
from sparse_engine.layers.other_kinds import sparse_kind
from sparse_engine.layers.plan import LayerPlan, with_spare_slots
from sparse_engine.layers.replacement.replace import check_replaceable, replace_layers
from sparse_engine.layers.report import Report, report
from sparse_engine.layers.surgery import change_layout, separated_projections
from sparse_engine.sparsity.channel_permutation.search import permute_for
from sparse_engine.sparsity.distribution import Distribution, Sparsity
from sparse_engine.sparsity.pruning import scored_layouts
from sparse_kernels import BlockLayout
from sparse_kernels.layout import TAPS, Taps

Init = Literal["magnitude", "random"]
INITS: tuple[Init, ...] = get_args(Init)


def sparsify(
    model: nn.Module,
    sparsity: float = 0.8,
    distribution: Distribution = "erk",
    block: LayerBlocks = (32, 32),
    skip: str | Sequence[str] | None = (),
    init: Init | Mapping[str, Tensor] = "magnitude",
    generator: torch.Generator | None = None,
    taps: Taps = "each",
    start_sparsity: float | None = None,
    headroom: float = 0.0,
    permute_channels: bool = False,
    regroup: bool = False,
) -> Report:
    """Replace the convolutions and linear layers of a model by sparse ones, in place.

    Args:
        model: any nn.Module; build the optimizer after this call.
        sparsity: share of all convolution and linear weights to drop, in [0, 1).
        distribution: "erk", "er", "uniform", an ErdosRenyi of some power, or densities by layer
            name (see distribution.Sparsity).
        block: (BO, BC), "BOxBC" or "auto"; (1, 1) is unstructured. Or these by patterns of layer
            names, the first that matches: {"*shortcut*": (1, 1), "conv1": "dense", "*": (32, 32)};
            a "dense" layer stays an ordinary module and counts in the budget.
        skip: a name, or several (a list, or a string with commas), of layers to leave dense and
            outside the budget; `*` matches anything. None for those of an earlier call.
        init: which blocks stay: "magnitude" (largest L1 norm), "random", or scores of single
            weights by layer name (see saliency.py), which choose the layers' densities as well, in
            place of the distribution. The weights of the model in these blocks are kept.
        generator: for init="random".
        taps: of a pair of channel blocks, "each" tap stays or goes by itself, those of a kernel's
            "row" together, or "all"; of no effect where a kernel has one tap.
        start_sparsity: begin as dense as this, for rules that prune to `sparsity` (GraNet).
        headroom: spare slots of a layer / its active blocks, for rules that move budgets between
            layers (SNFS).
        permute_channels: for init="magnitude": first put the model's channels in an order in which
            strong weights share blocks (see channel_permutation/search.py); it computes the same,
            and names stay.
        regroup: permute_channels by its earlier name.

    Returns:
        A report with a row per layer. Layers with groups, shared weights or a subclass's own
        forward are left alone and listed as skipped; layers that the distribution fills stay
        ordinary modules. An nn.MultiheadAttention with a sparse projection becomes a
        ProjectedAttention.

    Raises:
        InputError: arguments out of range, a pattern that matches no layer, a budget that leaves a
            layer no block, a lazily built layer that has no shape yet, a model that is wrapped
            for data-parallel training already, or one whose channels cannot be permuted.
    """
    if regroup:
        warn_renamed("sparsify(regroup=True)", "sparsify(permute_channels=True)")
    permuted = permute_channels or regroup
    _check_arguments(model, sparsity, init, taps, start_sparsity, headroom, permuted)
    what, model = Sparsity(sparsity, distribution, block, taps), changeable(model)
    with separated_projections(model) as separated:
        if skip is not None:
            skip_layers(model, skip)
        skipped, layers = skip_reasons(model), dict(dense_layers(model))
        check_data_types({n: m for n, m in layers.items() if n not in skipped})
        plans = plan_model(model, what, skipped)
        if permuted:
            chosen = dict.fromkeys(layers[plan.name] for plan in plans if not plan.is_dense)
            check_replaceable(model, _kept_apart(separated, chosen) | chosen)
            permute_for(model, {plan.name: None if plan.is_dense else plan for plan in plans})
        starts = plans
        if start_sparsity is not None:
            starts = plan_model(model, replace(what, sparsity=start_sparsity), skipped)
            starts = [denser(start, plan) for start, plan in zip(starts, plans)]
        if isinstance(init, str):
            chosen = {p.name: layers[p.name] for p in plans if not p.is_dense}
            weights = {name: planned(layer, layer.weight) for name, layer in chosen.items()}
            layouts = _first_blocks(starts, weights, init, generator)
        else:
            full = what.full({plan.name: plan.shape for plan in plans})
            layouts = scored_layouts(full, _planned_scores(init, layers), sparsity)
        replaced = {
            layers[name]: change_layout(layers[name], with_spare_slots(layout, headroom))
            for name, layout in layouts.items()
            if layout is not None
        }
        if start_sparsity is not None:
            for plan in plans:
                if not plan.is_dense:
                    replaced[layers[plan.name]].final_active = plan.active
        replace_layers(model, _kept_apart(separated, replaced) | replaced)
    return report(model, skipped)


def plan_model(
    model: nn.Module, what: Sparsity, skipped: Container[str] | None = None
) -> list[LayerPlan]:
    """Return what sparsify would do to a dense model, which may be on the meta device.

    Args:
        model: any nn.Module.
        what: the sparsity, how it is spread, and the blocks.
        skipped: names of layers outside the budget; those that sparsify leaves alone unless said.
    """
    skipped = skip_reasons(model) if skipped is None else skipped
    return what.plans({n: planned_shape(m) for n, m in dense_layers(model) if n not in skipped})


def denser(start: LayerPlan, final: LayerPlan) -> LayerPlan:
    """Return the plan that a layer begins with before it is pruned gradually.

    In whole blocks a layer of few can have one less in the denser network than in the final one.
    """
    return replace(start, active=max(start.active, final.active))


def densify(model: nn.Module) -> nn.Module:
    """Replace every sparse layer of a model by an ordinary one, in place; returns the model."""
    inside = changeable(model)
    if isinstance(inside, SparseLayer | ProjectedAttention):
        raise InputError(f"a bare {type(inside).__name__} is made dense by its to_dense()")
    modules = list(inside.modules())
    dense: dict[nn.Module, nn.Module] = {
        module: change_layout(module, None) for module in modules if isinstance(module, SparseLayer)
    }
    for module in modules:
        if isinstance(module, ProjectedAttention):
            dense[module] = attention = module.to_dense()
            attention.out_proj = dense.get(module.out_proj, module.out_proj)
    replace_layers(inside, dense)
    return model


def dense_state_dict(model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return the state dict that the dense form of a model has: `weight` in place of blocks."""
    state = OrderedDict(model.state_dict())
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, SparseLayer):
            prefix = f"{name}." if name else ""
            for part in ("values", "block_ids", "block_check"):
                del state[prefix + part]
            # A copy: the memory behind it has room for a spare tap, which torch.save would write.
            weight = layer.dense_weight().detach()
            state[prefix + "weight"] = weight.clone(memory_format=torch.contiguous_format)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ProjectedAttention):
            module.pack_(state, f"{name}." if name else "")
    return state


def _check_arguments(
    model: nn.Module,
    sparsity: float,
    init: Init | Mapping[str, Tensor],
    taps: Taps,
    start_sparsity: float | None,
    headroom: float,
    permuted: bool,
) -> None:
    if isinstance(init, str) and init not in INITS:
        raise InputError(f"unknown init '{init}'{nearest(init, INITS)}; use magnitude or random")
    if taps not in TAPS:
        raise InputError(f"unknown taps '{taps}'{nearest(taps, TAPS)}; use each, row or all")
    if is_own_class(model):
        raise InputError(
            f"a bare {type(model).__name__} cannot be replaced in place; "
            f"use {sparse_kind(model).__name__}.from_dense"
        )
    if start_sparsity is not None and not 0 <= start_sparsity < sparsity:
        raise InputError(
            f"start_sparsity must be at least 0 and below sparsity {sparsity}, "
            f"found {start_sparsity}"
        )
    if start_sparsity is not None and not isinstance(init, str):
        raise InputError("scores choose blocks of one sparsity: leave start_sparsity out")
    if permuted and init != "magnitude":
        raise InputError(
            "permute_channels is for init='magnitude', which keeps the strongest blocks"
        )
    if not 0 <= headroom < math.inf:
        raise InputError(f"headroom must be at least 0 and finite, found {headroom}")


def _first_blocks(
    starts: Sequence[LayerPlan],
    weights: Mapping[str, Tensor],
    init: Init,
    generator: torch.Generator | None,
) -> dict[str, BlockLayout]:
    """Return the layouts that layers with these weights begin with, by name."""
    return {
        plan.name: plan.random(generator)
        if init == "random"
        else plan.strongest(weights[plan.name])
        for plan in starts
        if plan.name in weights
    }


def _planned_scores(
    scores: Mapping[str, Tensor], layers: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """Return scores of single weights in the shapes in which layers are planned."""
    return {
        name: planned(layers[name], score)
        if name in layers and score.shape == layers[name].weight.shape
        else score
        for name, score in scores.items()
    }


def _kept_apart(
    separated: Mapping[nn.Module, nn.Module], replaced: Container[nn.Module]
) -> dict[nn.Module, nn.Module]:
    """Return attentions and what stands for them, where a layer of these is replaced."""
    return {
        old: new
        for old, new in separated.items()
        if any(module in replaced for module in new.modules())
    }
