"""List the runs of the papers' tables, and what they cost: sparse-engine configs [WORD...]."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from sparse_engine.config.config import Config
from sparse_engine.config.flags import Parser
from sparse_engine.config.named import config_names
from sparse_engine.config.values import read_config_file
from sparse_engine.errors import InputError, nearest
from sparse_engine.installed import require
from sparse_engine.methods.registry import METHODS
from sparse_engine.methods.resolve import resolve
from sparse_engine.tables import format_table

if TYPE_CHECKING:
    from sparse_engine.training.costs import DenseNetwork

_SETTINGS = ("--config", "members", "epochs", "sparsity", "block")
_HEADING = (*_SETTINGS, "training / dense", "test / dense")
_NOTE = """
training / dense: FLOPs against --method dense on the same data
test / dense: FLOPs of all members against one dense network
Methods that prune find their layers' densities in training; here they are ERK's."""
# What the network of a configuration depends on, besides its method's kind of network.
_NETWORK = (
    *("dataset", "model", "dropout", "skip", "batch_size", "downsample_rate", "seed"),
    *("passes", "batch_repetition", "input_repetition", "shared_stages"),
)


def main(arguments: Sequence[str]) -> None:
    """Run the command line `arguments`."""
    parser = Parser(
        prog="sparse-engine configs",
        usage="%(prog)s [WORD...]",
        description=(__doc__ or "").partition(":")[0] + ".",
        allow_abbrev=False,
    )
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only runs that have all of these in their names"
    )
    names = names_having(parser.parse_strictly(arguments).words)
    require("counting FLOPs", "tqdm", "torchvision")
    networks: dict[Hashable, DenseNetwork] = {}
    print(format_table([_HEADING, *(_row(name, networks) for name in names)], left=1))
    print(_NOTE)


def names_having(words: Sequence[str]) -> list[str]:
    """Return the names of configurations that have all of some words; InputError if none has."""
    names = config_names()
    chosen = [name for name in names if all(word in name for word in words)]
    if not chosen:
        wanted = " ".join(words)
        hint = nearest(wanted, names, most=3) or "; sparse-engine configs lists all"
        raise InputError(f"no configuration has '{wanted}' in its name{hint}")
    return chosen


def _row(name: str, networks: dict[Hashable, DenseNetwork]) -> tuple[str, ...]:
    """Return a line of the table, as --dry-run would plan that run.

    Many runs have one network, and counting it takes longest: `networks` keeps those counted.
    """
    from sparse_engine.data.load import dataset_info  # late, like everything that needs torch
    from sparse_engine.training.costs import dense_network, run_costs
    from sparse_engine.training.dry_run import training_images
    from sparse_engine.training.run import plan_phases

    config = resolve(Config(**read_config_file(name), dry_run=True))
    info = dataset_info(config.dataset)
    key = _network_key(config)
    if key not in networks:
        networks[key] = dense_network(config, info)
    phases = plan_phases(config, training_images(config, info))
    costs = run_costs(config, info, phases, dense=networks[key])
    return (
        name,
        f"{config.members}",
        f"{config.epochs}",
        f"{config.sparsity:g}",
        f"{config.block}" if config.sparsity else "-",
        f"{costs['train_flops_ratio']:.2f}",
        f"{costs['test_flops_ratio']:.2f}",
    )


def _network_key(config: Config) -> Hashable:
    network = METHODS[config.method].network
    members = config.members if network else None
    return (network, members, *(getattr(config, name) for name in _NETWORK))
