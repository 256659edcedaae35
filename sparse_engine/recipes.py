"""What each data set's settings are when nobody says otherwise. Imports no torch.

CIFAR and ImageNet: FreeTickets (Liu et al. 2022), appendix C. The others are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sparse_engine.blocks import parse_block
from sparse_engine.config import Config
from sparse_engine.data.catalog import check_name as check_dataset
from sparse_engine.errors import InputError
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.methods.registry import ENSEMBLES, check_method
from sparse_engine.models.catalog import check_name as check_model


@dataclass(frozen=True)
class Recipe:
    """Defaults for a data set; epochs are those of one single network."""

    model: str
    epochs: int
    batch_size: int
    weight_decay: float
    lr: float = 0.1
    block: str = "32x32"
    edst_epochs: tuple[int, int] | None = None
    dense_epochs: int | None = None
    label_smoothing: float = 0.0
    warmup_epochs: float = 0.0
    members: int = 3


_CIFAR = Recipe("wrn28-10", 250, 128, 5e-4, edst_epochs=(150, 100), dense_epochs=250)
_SMALL = Recipe("resnet20", 30, 128, 5e-4)
RECIPES = {
    "digits": Recipe("wrn16-2", 24, 128, 5e-4, block="8x8", edst_epochs=(24, 16)),
    "mnist": _SMALL,
    "fashion-mnist": _SMALL,
    "svhn": replace(_SMALL, model="wrn16-4"),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "imagenet": Recipe(
        "torchvision/resnet50",
        200,
        128,
        1e-4,
        edst_epochs=(30, 70),
        dense_epochs=150,
        label_smoothing=0.1,
        warmup_epochs=5,
        members=2,
    ),
}


def recipe_for(dataset: str) -> Recipe:
    """Return a data set's recipe; image folders and own arrays have a general one."""
    if dataset.startswith("imagefolder:"):
        return replace(RECIPES["imagenet"], epochs=90, edst_epochs=None, dense_epochs=None)
    return RECIPES.get(dataset, _SMALL)


def resolve(config: Config) -> Config:
    """Return the configuration with every open setting decided and names checked.

    Raises:
        InputError: unknown names, or settings that contradict each other.
    """
    check_method(config.method)
    check_dataset(config.dataset, config.data_dir)
    recipe = recipe_for(config.dataset)
    check_model(config.model or recipe.model)
    _check_contradictions(config)
    ensemble = config.method in ENSEMBLES
    members = config.members or (recipe.members if ensemble else 1)
    rule = config.topology or ("rigl" if ensemble else config.method)
    block = config.block or recipe.block
    parse_block(block)
    chosen: dict[str, Any] = {
        "model": config.model or recipe.model,
        "block": block,
        "members": members,
        "topology": None if rule == "dense" else rule,
        "sparsity": _sparsity(config),
        "start_sparsity": _start_sparsity(config, rule),
        "epochs": config.epochs or _epochs(config, recipe, members),
    }
    for name in ("batch_size", "lr", "weight_decay", "label_smoothing"):
        found = getattr(config, name)
        chosen[name] = getattr(recipe, name) if found is None else found
    chosen["dense_epochs"] = config.dense_epochs or recipe.dense_epochs or chosen["epochs"]
    return replace(config, **chosen)


def warmup_share(config: Config) -> float:
    """Return the share of a resolved run over which the learning rate rises."""
    recipe = recipe_for(config.dataset)
    usual = _epochs(config, recipe, config.members or 1)
    return recipe.warmup_epochs / usual


def _sparsity(config: Config) -> float:
    if config.method == "dense":
        return 0.0
    return 0.8 if config.sparsity is None else config.sparsity


def _start_sparsity(config: Config, rule: str) -> float | None:
    """Return the sparsity that gradual pruning begins with: one half, as GraNet."""
    start, sparsity = config.start_sparsity, _sparsity(config)
    if rule != "granet":
        if start is not None:
            raise InputError(f"--start-sparsity is of topology 'granet', found '{rule}'")
        return None
    start = 0.5 if start is None else start
    if start >= sparsity:
        raise InputError(
            f"granet prunes from --start-sparsity {start:g} to --sparsity {sparsity:g}: "
            "the first must be the smaller"
        )
    return start


def _epochs(config: Config, recipe: Recipe, members: int) -> int:
    if config.method == "edst":
        usual = schedule_for(config.dataset)
        explore, refine = recipe.edst_epochs or (
            max(1, share * recipe.epochs // 250) for share in (usual.explore, usual.refine)
        )
        return explore + members * refine
    if config.method == "dense":
        return recipe.dense_epochs or recipe.epochs
    return recipe.epochs * (members if config.method == "dst-ensemble" else 1)


def _check_contradictions(config: Config) -> None:
    if config.method == "dense" and config.sparsity:
        raise InputError("method 'dense' has no sparsity; leave --sparsity out, or use 'static'")
    rule = config.topology or ("rigl" if config.method in ENSEMBLES else config.method)
    if config.sparsity == 0 and rule not in ("static", "dense"):
        raise InputError(
            f"method '{config.method}' has no blocks to update at sparsity 0; "
            "use --method dense, or --topology static for an ensemble of dense networks"
        )
    if config.method not in ENSEMBLES:
        if (config.members or 1) != 1:
            raise InputError(
                f"method '{config.method}' trains one network, found members {config.members}; "
                "use dst-ensemble or edst"
            )
        if config.topology not in (None, config.method):
            raise InputError(
                f"method '{config.method}' and --topology {config.topology} contradict each other"
            )
