"""Every open setting of a run decided, and contradictions refused. Imports no torch."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sparse_engine.config.config import Config
from sparse_engine.config.values import check_period
from sparse_engine.data.catalog import check_name as check_dataset
from sparse_engine.errors import InputError
from sparse_engine.layers.blocks import parse_blocks
from sparse_engine.methods.contradictions import of_decided, of_given
from sparse_engine.methods.method import Method
from sparse_engine.methods.recipes import Recipe, recipe_for
from sparse_engine.methods.registry import METHODS, method_named
from sparse_engine.models.catalog import check_name as check_model

_WARMUP = 5 / 90  # of one network's training


def resolve(config: Config) -> Config:
    """Return the configuration with every open setting decided and names checked.

    Raises:
        InputError: unknown names, or settings that contradict each other.
    """
    method = method_named(config.method)
    check_dataset(config.dataset, config.data_dir)
    config.preparation.check(config.dataset)
    recipe = recipe_for(config.dataset)
    config = replace(config, model=config.model or recipe.model)
    check_model(config.model)
    check_period(config.checkpoint_every)
    _refuse(of_given(config, method))
    config = replace(config, **_network(config, method, recipe))
    config = replace(config, **_options(config, method))
    config = replace(config, **_lengths(config, method, recipe))
    _refuse(of_decided(config, method))
    method.check(config)
    return config


def _refuse(messages: Iterator[str]) -> None:
    for message in messages:
        raise InputError(message)


def warmup_share(config: Config) -> float:
    """Return the share of a resolved run over which the learning rate rises."""
    recipe = recipe_for(config.dataset)
    epochs = _epochs(config, METHODS[config.method], recipe)
    return recipe.warmup_epochs / epochs if config.warmup is None else config.warmup


def _network(config: Config, method: Method, recipe: Recipe) -> dict[str, Any]:
    """Return how sparse the networks are, in which blocks, how many there are, and their rule."""
    rule, sparsity = method.rule_of(config), config.sparsity
    if sparsity is None and config.distribution != "timed":
        sparsity = method.usual_sparsity
    start = config.start_sparsity
    if rule == "granet" and start is None:
        start = 0.5  # as GraNet
    block = config.block or recipe.block
    parse_blocks(config.layer_blocks or {}, block)
    return {
        "topology": None if rule == "dense" else rule,
        "sparsity": sparsity,
        "start_sparsity": start,
        "block": block,
        "distribution": config.distribution
        or ("erk" if config.erk_power != 1 else recipe.distribution),
        "members": method.members_of(config, recipe.members),
    }


def _options(config: Config, method: Method) -> dict[str, Any]:
    """Return the method's own settings, decided.

    Raises:
        InputError: a setting that this method does not have.
    """
    for name in sorted({name for other in METHODS.values() for name in other.options}):
        if name not in method.options and getattr(config, name) is not None:
            users = ", ".join(other for other, m in METHODS.items() if name in m.options)
            raise InputError(
                f"method '{config.method}' has no --{name.replace('_', '-')}, "
                f"which belongs to {users}"
            )
    chosen = {}
    for name, default in {**method.options, **method.usual}.items():
        given = getattr(config, name)
        usual = default(config) if callable(default) else default
        chosen[name] = usual if given is None else given
    return chosen


def _lengths(config: Config, method: Method, recipe: Recipe) -> dict[str, Any]:
    """Return what the recipe says of the optimisation, and lengths, multiplied by the scale."""
    chosen: dict[str, Any] = {
        name: getattr(recipe, name) if getattr(config, name) is None else getattr(config, name)
        for name in ("batch_size", "weight_decay", "label_smoothing", "norm_decay")
    }
    chosen |= _learning_rate(config, method, recipe, chosen["batch_size"])
    lengths = {"epochs": config.epochs or _epochs(config, method, recipe)}
    lengths["dense_epochs"] = config.dense_epochs or recipe.dense_epochs or recipe.epochs
    if config.update_interval:
        lengths["update_interval"] = config.update_interval
    scale = config.scale or 1.0
    scaled = {name: max(1, round(scale * length)) for name, length in lengths.items()}
    return {**chosen, **scaled, "scale": None}


def _learning_rate(
    config: Config, method: Method, recipe: Recipe, batch_size: int
) -> dict[str, float | None]:
    """Return the highest learning rate, and the share of the run over which it is reached.

    In proportion to the batch, unless given; larger batches than the recipe's need a warm-up
    (Goyal et al. 2017, sections 2.1 and 2.2: 5 of 90 epochs). None is the recipe's warm-up.
    """
    if config.lr is not None:
        chosen = {"lr": config.lr, "warmup": config.warmup}
    else:
        chosen = {"lr": recipe.lr * batch_size / recipe.batch_size, "warmup": config.warmup}
        if config.warmup is None and batch_size > recipe.batch_size:
            first = max(recipe.warmup_epochs, _WARMUP * recipe.epochs)
            chosen["warmup"] = first / _epochs(config, method, recipe)
    most = recipe.epochs / _epochs(config, method, recipe) / 2
    if config.warmup is not None and config.warmup > most:
        raise InputError(
            f"--warmup {config.warmup:g} is of the whole run, of which one network has "
            f"{2 * most:.2g}; give at most half of that"
        )
    return chosen


def _epochs(config: Config, method: Method, recipe: Recipe) -> int:
    if method.epochs is not None:
        return method.epochs(config, recipe)
    dense = method.has_dense_run and recipe.dense_epochs
    return max(1, round((dense or recipe.epochs) * method.runs(config)))
