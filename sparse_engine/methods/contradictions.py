"""Settings that contradict each other, each in a row: when, and what is said. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.methods.method import CHOSEN, Method
from sparse_engine.methods.registry import METHODS

# Whether a configuration `c` of a method `m` is refused; the message, with both as fields, and
# with `what` that the row's function may say.
Row = tuple[Callable[[Config, Method], object], str]


def refuse(rows: Iterable[Row], config: Config, method: Method) -> None:
    """Raise InputError, with its message, for the first row that applies."""
    for applies, message in rows:
        if what := applies(config, method):
            raise InputError(message.format(c=config, rule=method.rule_of(config), what=what))


def _names(chosen: Callable[[Method], object], between: str) -> str:
    return between.join(name for name, method in METHODS.items() if chosen(method))


def _starts_dense(c: Config, m: Method) -> bool:
    return m.rule == "dense" or m.starts_dense


def _budget(c: Config, m: Method) -> str:
    """Return what gives a configuration a budget other than the papers' number of weights."""
    if c.erk_power != 1:
        return f"--erk-power {c.erk_power:g}"
    if c.distribution == "timed":
        return "distribution 'timed'"
    return "" if c.match == "params" else f"--match {c.match}"


def _uneven_epochs(c: Config, m: Method) -> str:
    """Return which numbers of epochs grouped members could share out whole."""
    members, epochs = c.members or 1, c.epochs or 1
    rest = epochs % members
    if c.parallel != "grouped" or not rest:
        return ""
    return f"{epochs - rest} or {epochs - rest + members}" if epochs > rest else f"{members}"


# Of settings as they are given.
GIVEN: tuple[Row, ...] = (
    (
        lambda c, m: m.rule == "dense" and c.sparsity,
        "method 'dense' has no sparsity; leave --sparsity out, or use 'static'",
    ),
    (
        lambda c, m: c.sparsity == 0 and m.rule_of(c) not in ("static", "dense"),
        "method '{c.method}' has no blocks to update at sparsity 0; "
        "use --method dense, or --topology static for an ensemble of dense networks",
    ),
    (
        lambda c, m: c.weight_init != "dense" and _starts_dense(c, m),
        "--weight-init {c.weight_init} is for networks that start sparse, and method "
        "'{c.method}' starts dense",
    ),
    (
        lambda c, m: c.start != "random" and m.rule_of(c) == "granet",
        "--start {c.start} chooses sparse first blocks, topology 'granet' has none",
    ),
    (
        lambda c, m: c.start != "random" and (_starts_dense(c, m) or c.sparsity == 0),
        "--start {c.start} chooses sparse first blocks, method '{c.method}' has none",
    ),
    (
        lambda c, m: c.sparsity == 0 and m.starts_dense,
        "method '{c.method}' has nothing to prune at sparsity 0; use --method dense",
    ),
    (
        lambda c, m: m.least_members is None and (c.members or 1) != 1,
        "method '{c.method}' trains one network, found members {c.members}; "
        "use dst-ensemble or edst",
    ),
    (
        lambda c, m: m.rule != CHOSEN and c.topology not in (None, m.rule),
        "method '{c.method}' and --topology {c.topology} contradict each other",
    ),
    (
        lambda c, m: (
            c.permute_channels and not m.starts_dense and _names(lambda m: m.starts_dense, ", ")
        ),
        "--permute-channels is for methods that prune a dense network ({what}), and method "
        "'{c.method}' does not; leave it out",
    ),
    (
        lambda c, m: c.start_sparsity is not None and m.rule_of(c) != "granet",
        "--start-sparsity is of topology 'granet', found '{rule}'",
    ),
)
# Of settings when all are decided.
DECIDED: tuple[Row, ...] = (
    (
        lambda c, m: c.permute_channels and c.block == "1x1" and not c.layer_blocks,
        "--permute-channels orders channels for blocks, and --block 1x1 has none: leave it out",
    ),
    (
        lambda c, m: None not in (c.start_sparsity, c.sparsity) and c.start_sparsity >= c.sparsity,
        "granet prunes from --start-sparsity {c.start_sparsity:g} to --sparsity {c.sparsity:g}: "
        "the first must be the smaller",
    ),
    (
        lambda c, m: c.densities and c.distribution != "timed",
        "densities are of distribution 'timed'; leave them out, or use it",
    ),
    (
        lambda c, m: c.distribution == "timed" and c.time_budget is None,
        "distribution 'timed' needs --time-budget, such as 0.35 of the dense time",
    ),
    (
        lambda c, m: c.distribution != "timed" and c.time_budget is not None,
        "--time-budget is of distribution 'timed', found '{c.distribution}'; "
        "to match another's time, use --match time",
    ),
    (
        lambda c, m: c.distribution == "timed" and c.match != "params",
        "distribution 'timed' has a budget of its own: leave --match {c.match} out",
    ),
    (
        lambda c, m: c.distribution == "timed" and c.sparsity is not None and not c.densities,
        "with distribution 'timed' the sparsity is a result of --time-budget: leave --sparsity out",
    ),
    (
        lambda c, m: c.erk_power != 1 and c.distribution not in ("erk", "er"),
        "--erk-power {c.erk_power:g} is of distributions erk and er, found '{c.distribution}'",
    ),
    (
        lambda c, m: c.method in ("dense", "deep-ensemble") and _budget(c, m),
        "method '{c.method}' is dense, and {what} of sparse networks",
    ),
    (
        lambda c, m: c.start != "random" and _budget(c, m),
        "--start {c.start} chooses the layers' densities itself: leave {what} out",
    ),
    (
        lambda c, m: c.prune_scope == "global" and _budget(c, m),
        "--prune-scope global chooses the layers' densities itself: leave {what} out, or use "
        "--prune-scope layer",
    ),
    (
        lambda c, m: m.least_members == 2 and (c.members or 1) < 2,
        "method '{c.method}' is of several members, found members {c.members}; "
        "use at least 2, or --method dense",
    ),
    (
        lambda c, m: (
            c.parallel == "grouped"
            and not m.independent
            and _names(lambda m: m.independent, " or ")
        ),
        "--parallel grouped is for members that do not depend on each other, of {what}; those of "
        "'{c.method}' do, or it has none",
    ),
    (
        lambda c, m: c.parallel == "grouped" and (c.members or 1) < 2,
        "--parallel grouped needs two members or more, found --members {c.members}",
    ),
    (
        lambda c, m: c.parallel == "grouped" and c.topology == "snfs",
        "--parallel grouped keeps each layer's number of blocks, and --topology snfs moves them "
        "between layers; use static, set, rigl or granet",
    ),
    (
        lambda c, m: c.parallel == "grouped" and c.fuse == "on",
        "--parallel grouped and --fuse on exclude each other; leave --fuse out",
    ),
    (
        _uneven_epochs,
        "--parallel grouped gives every member the same number of epochs, and {c.epochs} are no "
        "multiple of {c.members}; use --epochs {what}",
    ),
)
