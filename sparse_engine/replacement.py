"""Modules of a model put in the place of others, in place; attentions taken apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from sparse_engine.attention import ProjectedAttention, why_whole
from sparse_engine.candidates import compiled_modules, shared_parameters
from sparse_engine.layer import SparseLayer


def replace_children(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the places of others inside a model; hooks of forward and backward go along.

    Args:
        model: changed in place; it cannot be replaced itself.
        replaced: the new module by the old one, which may be at several places.
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    for old, new in replaced.items():
        for name, value in vars(old).items():
            if name.startswith(("_forward_", "_backward_", "_is_full_backward")):
                setattr(new, name, value)


def separate_projections(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Put a ProjectedAttention in the place of every nn.MultiheadAttention inside a model.

    Returns:
        The replaced module by the one in its place.
    """
    kept = {model, *compiled_modules(model)}
    shared = shared_parameters(model)
    replaced: dict[nn.Module, nn.Module] = {
        module: ProjectedAttention(module)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        and module not in kept
        and why_whole(module, shared) is None
    }
    replace_children(model, replaced)
    return {new: old for old, new in replaced.items()}


@contextmanager
def separated_projections(model: nn.Module) -> Iterator[None]:
    """Take attentions apart; where no layer has become sparse within, they are put back."""
    replaced = separate_projections(model)
    try:
        yield
    finally:
        replace_children(model, {n: o for n, o in replaced.items() if not has_sparse_layers(n)})


def has_sparse_layers(module: nn.Module) -> bool:
    """Return whether a module is a sparse layer or has one inside."""
    return any(isinstance(m, SparseLayer) for m in module.modules())
