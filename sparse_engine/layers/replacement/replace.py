"""Modules put in the places of others inside a model: the one way in which layers are exchanged."""

import warnings
from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

from sparse_engine.errors import ReplacedLayerWarning
from sparse_engine.layers.attention import INPUTS
from sparse_engine.layers.base import SparseLayer
from sparse_engine.layers.optimizer_state import carry_state
from sparse_engine.layers.replacement.carried_over import carry_over, is_layer, refuse_own_forward
from sparse_engine.layers.replacement.holders import Exchange, Holders, Wanted

_WEIGHTS = ("weight", "values", "in_proj_weight", "in_proj_bias", *(f"{p}_weight" for p in INPUTS))


def check_replaceable(model: nn.Module, replaced: Mapping[nn.Module, nn.Module | None]) -> Exchange:
    """Return how layers of a model can be exchanged; nothing is changed.

    Args:
        model: not a layer itself.
        replaced: layers, and what will take their places, as far as it is known.

    Raises:
        InputError: a layer has a forward of its own, or it or its weight is held where it cannot be
            exchanged.
    """
    wanted, weights = dict[int, Wanted](), dict[int, Wanted]()
    for layer, name in _names(model, replaced).items():
        refuse_own_forward(name, layer)
        pattern = name if is_layer(layer) else f"{name}.*"
        wanted[id(layer)] = Wanted(f"layer '{name}'", pattern)
        found = (layer._parameters.get(weight) for weight in _WEIGHTS)
        of_weight = Wanted(f"the weight of layer '{name}'", pattern)
        weights |= {id(w): of_weight for w in found if w is not None}
    holders = Holders(model, wanted | weights)
    if not holders.is_complete:
        warnings.warn(
            f"a {type(model).__name__} holds more objects than are searched for its layers: "
            "layers that are also held far from their modules may be missed",
            ReplacedLayerWarning,
            stacklevel=3,
        )
    return holders.exchange(fixed=weights)


def replace_layers(
    model: nn.Module,
    replaced: Mapping[nn.Module, nn.Module],
    optimizer: Optimizer | None = None,
) -> None:
    """Put modules in the places of others, in place and wherever the model holds them.

    Hooks, attributes, bias and gradients go along; what cannot is named in one warning. An
    optimizer's state of the blocks that both have is carried over.

    Args:
        model: changed in place; it cannot be replaced itself.
        replaced: the new module by the old one, which may be at several places.
        optimizer: of the old modules' weights.

    Raises:
        InputError: as check_replaceable does, before anything is changed.
    """
    replaced = {old: new for old, new in replaced.items() if old is not new}
    if not replaced:
        return
    names, exchange = _names(model, replaced), check_replaceable(model, replaced)
    exchange.apply({id(old): new for old, new in replaced.items()})
    lost = []
    for old, new in replaced.items():
        if optimizer is not None:
            carry_state(optimizer, old, new)
        found = carry_over(old, new, exchange.new_of)
        lost += [f"layer '{names[old]}' ({', '.join(found)})"] if found else []
    if lost:
        warnings.warn(
            f"not carried over to the new layers, set it anew on them: {'; '.join(lost)}",
            ReplacedLayerWarning,
            stacklevel=3,
        )


def _names(
    model: nn.Module, replaced: Mapping[nn.Module, nn.Module | None]
) -> dict[nn.Module, str]:
    """Return the names of layers, some of which others have taken the places of already."""
    names = {module: name for name, module in model.named_modules()}
    return {old: names.get(old, names.get(new, "")) for old, new in replaced.items()}


def has_sparse_layers(module: nn.Module) -> bool:
    """Return whether a module is a sparse layer or has one inside."""
    return any(isinstance(m, SparseLayer) for m in module.modules())
