"""What each data set's settings are when nobody says otherwise. Imports no torch.

CIFAR and ImageNet: FreeTickets (Liu et al. 2022), appendix C. The others are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparse_engine.config.config import Config
from sparse_engine.config.values import check_period
from sparse_engine.data.catalog import check_name as check_dataset
from sparse_engine.errors import InputError
from sparse_engine.layers.blocks import DENSE, parse_block
from sparse_engine.methods.baselines import BASELINES, check_baseline
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.methods.grouped_run import check_grouped
from sparse_engine.methods.options import method_options
from sparse_engine.methods.registry import DYNAMIC, ENSEMBLES, PRUNING, RUN_COUNTS, check_method
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
    norm_decay: str = "on"


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
        norm_decay="off",
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
    config = replace(config, model=config.model or recipe.model)
    check_model(config.model)
    check_period(config.checkpoint_every)
    _check_contradictions(config)
    block = config.block or recipe.block
    parse_block(block)
    _check_layer_blocks(config.layer_blocks or {})
    rule = _rule(config)
    _check_permute_channels(config, block)
    settled = {"sparsity": _sparsity(config), "members": _members(config, recipe), "block": block}
    config = replace(config, **settled)
    config = replace(config, **method_options(config))
    _check_budget(config)
    chosen: dict[str, Any] = {
        "topology": None if rule == "dense" else rule,
        "start_sparsity": _start_sparsity(config, rule),
        "epochs": config.epochs or _epochs(config, recipe),
    }
    for name in ("batch_size", "lr", "weight_decay", "label_smoothing", "norm_decay"):
        found = getattr(config, name)
        chosen[name] = getattr(recipe, name) if found is None else found
    chosen["dense_epochs"] = config.dense_epochs or recipe.dense_epochs or chosen["epochs"]
    config = replace(config, **{**chosen, **_scaled(config, chosen)})
    check_baseline(config)
    check_grouped(config)
    return config


def warmup_share(config: Config) -> float:
    """Return the share of a resolved run over which the learning rate rises."""
    recipe = recipe_for(config.dataset)
    return recipe.warmup_epochs / _epochs(config, recipe)


def _scaled(config: Config, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the lengths of a run that is `scale` times as long, and no scale any more."""
    lengths = {name: chosen[name] for name in ("epochs", "dense_epochs")}
    if config.update_interval:
        lengths["update_interval"] = config.update_interval
    scale = config.scale or 1.0
    return {**{name: max(1, round(scale * n)) for name, n in lengths.items()}, "scale": None}


def _sparsity(config: Config) -> float | None:
    dense = config.method == "dense" or config.method in BASELINES
    if config.sparsity is None and config.distribution == "timed":
        return None
    if config.sparsity is None:
        return 0.0 if dense else 0.8
    return config.sparsity


def _start_sparsity(config: Config, rule: str) -> float | None:
    """Return the sparsity that gradual pruning begins with: one half, as GraNet."""
    start, sparsity = config.start_sparsity, _sparsity(config)
    if rule != "granet":
        if start is not None:
            raise InputError(f"--start-sparsity is of topology 'granet', found '{rule}'")
        return None
    start = 0.5 if start is None else start
    if sparsity is not None and start >= sparsity:
        raise InputError(
            f"granet prunes from --start-sparsity {start:g} to --sparsity {sparsity:g}: "
            "the first must be the smaller"
        )
    return start


def _members(config: Config, recipe: Recipe) -> int:
    usual = recipe.members if config.method in ENSEMBLES and config.method != "lottery" else 1
    return config.members or usual


def _rule(config: Config) -> str:
    if config.method in DYNAMIC:
        return config.topology or "rigl"
    return "static" if config.method in (*PRUNING, *BASELINES) else config.method


def _epochs(config: Config, recipe: Recipe) -> int:
    if config.method == "edst":
        usual = schedule_for(config.dataset)
        explore, refine = recipe.edst_epochs or (
            max(1, share * recipe.epochs // 250) for share in (usual.explore, usual.refine)
        )
        return explore + (config.members or 1) * refine
    dense = config.method == "dense" or config.method in (*PRUNING, *BASELINES)
    epochs = recipe.dense_epochs if dense and recipe.dense_epochs else recipe.epochs
    runs = RUN_COUNTS.get(config.method, lambda config: 1)
    return max(1, round(epochs * runs(config)))


def _check_contradictions(config: Config) -> None:
    if config.method == "dense" and config.sparsity:
        raise InputError("method 'dense' has no sparsity; leave --sparsity out, or use 'static'")
    rule = _rule(config)
    if config.sparsity == 0 and rule not in ("static", "dense"):
        raise InputError(
            f"method '{config.method}' has no blocks to update at sparsity 0; "
            "use --method dense, or --topology static for an ensemble of dense networks"
        )
    if config.weight_init != "dense" and config.method in ("dense", *PRUNING):
        raise InputError(
            f"--weight-init {config.weight_init} is for networks that start sparse, and method "
            f"'{config.method}' starts dense"
        )
    config.criteria.check_rule(rule)
    prunes = config.method in ("sup-tickets", *PRUNING)
    if config.fan_in == "constant" and (prunes or _sparsity(config) == 0):
        what = "keeps the strongest blocks, wherever they are" if prunes else "is dense"
        raise InputError(f"method '{config.method}' {what}: leave --fan-in constant out")
    starts_dense = config.method in ("dense", *PRUNING) or rule == "granet"
    if config.start != "random" and (starts_dense or config.sparsity == 0):
        what = "topology 'granet'" if rule == "granet" else f"method '{config.method}'"
        raise InputError(f"--start {config.start} chooses sparse first blocks, {what} has none")
    if config.sparsity == 0 and config.method in PRUNING:
        raise InputError(
            f"method '{config.method}' has nothing to prune at sparsity 0; use --method dense"
        )
    if config.method not in ENSEMBLES and (config.members or 1) != 1:
        raise InputError(
            f"method '{config.method}' trains one network, found members {config.members}; "
            "use dst-ensemble or edst"
        )
    if config.method not in DYNAMIC and config.topology not in (None, rule):
        raise InputError(
            f"method '{config.method}' and --topology {config.topology} contradict each other"
        )
    if config.method == "kd-ticket" and not (config.teacher or config.dry_run):
        raise InputError("method 'kd-ticket' needs --teacher RUN, the folder of a dense run")


def _check_permute_channels(config: Config, block: str) -> None:
    """Raise InputError for an order of channels that nothing would come of."""
    if config.permute_channels and config.method not in PRUNING:
        raise InputError(
            f"--permute-channels is for methods that prune a dense network "
            f"({', '.join(PRUNING)}), and method '{config.method}' does not; leave it out"
        )
    if config.permute_channels and block == "1x1" and not config.layer_blocks:
        raise InputError(
            "--permute-channels orders channels for blocks, and --block 1x1 has none: leave it out"
        )


def _check_layer_blocks(blocks: Mapping[str, Any]) -> None:
    """Raise InputError for what is no block; whether there are such layers is known later."""
    for pattern, block in blocks.items():
        if block != DENSE:
            try:
                parse_block(str(block))
            except InputError as error:
                raise InputError(f"layer_blocks: '{pattern}': {error} (or dense)") from None


def _check_budget(config: Config) -> None:
    """Raise InputError for budgets and densities that contradict other settings."""
    timed, match = config.distribution == "timed", config.match
    if config.densities and not timed:
        raise InputError("densities are of distribution 'timed'; leave them out, or use it")
    if timed and config.time_budget is None:
        raise InputError("distribution 'timed' needs --time-budget, such as 0.35 of the dense time")
    if config.time_budget is not None and not timed:
        raise InputError(
            f"--time-budget is of distribution 'timed', found '{config.distribution}'; "
            "to match another's time, use --match time"
        )
    if timed and match != "params":
        raise InputError(f"distribution 'timed' has a budget of its own: leave --match {match} out")
    if timed and config.sparsity is not None and not config.densities:
        raise InputError(
            "with distribution 'timed' the sparsity is a result of --time-budget: leave --sparsity "
            "out"
        )
    power = config.erk_power
    if power != 1 and config.distribution not in ("erk", "er"):
        raise InputError(
            f"--erk-power {power:g} is of distributions erk and er, found '{config.distribution}'"
        )
    if not timed and match == "params" and power == 1:
        return
    what = "distribution 'timed'" if timed else f"--match {match}"
    if power != 1:
        what = f"--erk-power {power:g}"
    if config.method in ("dense", "deep-ensemble"):
        raise InputError(f"method '{config.method}' is dense, and {what} of sparse networks")
    if config.start != "random":
        raise InputError(
            f"--start {config.start} chooses the layers' densities itself: leave {what} out"
        )
    if config.prune_scope == "global":
        raise InputError(
            f"--prune-scope global chooses the layers' densities itself: leave {what} out, or use "
            "--prune-scope layer"
        )
