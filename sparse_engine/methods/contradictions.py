"""Settings that contradict each other: when, and what is said of it. Imports no torch.

Each function yields the messages of all that is wrong with a configuration of a method.
"""

from collections.abc import Callable, Iterator

from sparse_engine.config.config import Config
from sparse_engine.methods.method import CHOSEN, Method
from sparse_engine.methods.registry import METHODS


def of_given(c: Config, m: Method) -> Iterator[str]:
    """Contradictions between settings as they are given."""
    rule, starts_dense = m.rule_of(c), m.rule == "dense" or m.starts_dense
    method = f"method '{c.method}'"
    if m.rule == "dense" and c.sparsity:
        yield "method 'dense' has no sparsity; leave --sparsity out, or use 'static'"
    if c.sparsity == 0 and rule not in ("static", "dense"):
        yield (
            f"{method} has no blocks to update at sparsity 0; use --method dense, or --topology "
            "static for an ensemble of dense networks"
        )
    if c.weight_init != "dense" and starts_dense:
        yield (
            f"--weight-init {c.weight_init} is for networks that start sparse, and {method} starts "
            "dense"
        )
    if c.start != "random" and (rule == "granet" or starts_dense or c.sparsity == 0):
        what = "topology 'granet'" if rule == "granet" else method
        yield f"--start {c.start} chooses sparse first blocks, {what} has none"
    if c.sparsity == 0 and m.starts_dense:
        yield f"{method} has nothing to prune at sparsity 0; use --method dense"
    if m.least_members is None and (c.members or 1) != 1:
        yield f"{method} trains one network, found members {c.members}; use dst-ensemble or edst"
    if m.rule != CHOSEN and c.topology not in (None, m.rule):
        yield f"{method} and --topology {c.topology} contradict each other"
    if c.permute_channels and not m.starts_dense:
        pruning = _names(lambda method: method.starts_dense, ", ")
        yield (
            f"--permute-channels is for methods that prune a dense network ({pruning}), and "
            f"{method} does not; leave it out"
        )
    if c.cover and rule in ("dense", "static"):
        yield f"--cover is of updates that move blocks, and {method} has none; leave it out"
    if c.start_sparsity is not None and rule != "granet":
        yield f"--start-sparsity is of topology 'granet', found '{rule}'"


def of_decided(c: Config, m: Method) -> Iterator[str]:
    """Contradictions between settings when all are decided."""
    if c.permute_channels and c.block == "1x1" and not c.layer_blocks:
        yield "--permute-channels orders channels for blocks, --block 1x1 has none: leave it out"
    if None not in (c.start_sparsity, c.sparsity) and c.start_sparsity >= c.sparsity:
        yield (
            f"granet prunes from --start-sparsity {c.start_sparsity:g} to --sparsity "
            f"{c.sparsity:g}: the first must be the smaller"
        )
    if c.select == "validation" and c.evaluate_every > 1:
        yield (
            "--select validation chooses among all epochs, and --evaluate-every "
            f"{c.evaluate_every} leaves some out; leave one of them out"
        )
    yield from _of_budget(c)
    if m.least_members == 2 and (c.members or 1) < 2:
        yield (
            f"method '{c.method}' is of several members, found members {c.members}; use at least "
            "2, or --method dense"
        )
    if c.parallel == "grouped":
        yield from _of_grouped(c, m)


def _of_budget(c: Config) -> Iterator[str]:
    timed = c.distribution == "timed"
    if c.densities and not timed:
        yield "densities are of distribution 'timed'; leave them out, or use it"
    if timed and c.time_budget is None:
        yield "distribution 'timed' needs --time-budget, such as 0.35 of the dense time"
    if not timed and c.time_budget is not None:
        yield (
            f"--time-budget is of distribution 'timed', found '{c.distribution}'; to match "
            "another's time, use --match time"
        )
    if timed and c.match != "params":
        yield f"distribution 'timed' has a budget of its own: leave --match {c.match} out"
    if timed and c.sparsity is not None and not c.densities:
        yield (
            "with distribution 'timed' the sparsity is a result of --time-budget: leave "
            "--sparsity out"
        )
    if c.erk_power != 1 and c.distribution not in ("erk", "er"):
        yield (
            f"--erk-power {c.erk_power:g} is of distributions erk and er, found '{c.distribution}'"
        )
    budget = "" if c.match == "params" else f"--match {c.match}"
    budget = "distribution 'timed'" if timed else budget
    budget = f"--erk-power {c.erk_power:g}" if c.erk_power != 1 else budget
    if not budget:
        return
    if c.method in ("dense", "deep-ensemble"):
        yield f"method '{c.method}' is dense, and {budget} of sparse networks"
    if c.start != "random":
        yield f"--start {c.start} chooses the layers' densities itself: leave {budget} out"
    if c.prune_scope == "global":
        yield (
            f"--prune-scope global chooses the layers' densities itself: leave {budget} out, or "
            "use --prune-scope layer"
        )


def _of_grouped(c: Config, m: Method) -> Iterator[str]:
    """Epochs are shared out whole, so that every member sees what it would see alone."""
    flag, members, epochs = "--parallel grouped", c.members or 1, c.epochs or 1
    if not m.independent:
        yield (
            f"{flag} is for members that do not depend on each other, of "
            f"{_names(lambda method: method.independent, ' or ')}; those of '{c.method}' do, or it "
            "has none"
        )
    if members < 2:
        yield f"{flag} needs two members or more, found --members {members}"
    if c.topology == "snfs":
        yield (
            f"{flag} keeps each layer's number of blocks, and --topology snfs moves them between "
            "layers; use static, set, rigl or granet"
        )
    if c.fuse == "on":
        yield f"{flag} and --fuse on exclude each other; leave --fuse out"
    if rest := epochs % members:
        below = epochs - rest
        choices = f"{below} or {below + members}" if below else f"{members}"
        yield (
            f"{flag} gives every member the same number of epochs, and {epochs} are no multiple of "
            f"{members}; use --epochs {choices}"
        )


def _names(chosen: Callable[[Method], object], between: str) -> str:
    return between.join(name for name, method in METHODS.items() if chosen(method))
