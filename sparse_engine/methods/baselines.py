"""Baselines whose network is no plain model: what they ask of a run. Imports no torch.

They are dense, or with --sparsity of random blocks that stay, and train in one phase.
"""

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.methods.method import Method
from sparse_engine.methods.single import phases
from sparse_engine.models.catalog import stage_count


def _check_dropout(config: Config) -> None:
    if not config.dropout:
        raise InputError("method 'mc-dropout' needs dropout; use --dropout 0.1, or another rate")


def _check_stages(config: Config) -> None:
    stages = stage_count(config.model)
    if (config.shared_stages or 1) > stages:
        raise InputError(
            f"model '{config.model}' has {stages} stages, found shared_stages "
            f"{config.shared_stages}; {stages} leaves each branch only a classifier"
        )


def _check_batch(config: Config) -> None:
    least = 2 * (config.members or 1)
    if (config.batch_size or 0) < least:
        raise InputError(
            f"method 'batch-ensemble' shares a batch of {config.batch_size} out to "
            f"{config.members} members, and each needs 2 images; use --batch-size {least} or more"
        )


MC_DROPOUT = Method(
    phases,
    usual_sparsity=0.0,
    options={"passes": 10},
    network="mc-dropout",
    check=_check_dropout,
)
BATCH_ENSEMBLE = Method(
    phases, usual_sparsity=0.0, least_members=2, network="batch-ensemble", check=_check_batch
)
MIMO = Method(
    phases,
    usual_sparsity=0.0,
    least_members=2,
    options={"batch_repetition": 1, "input_repetition": 0.0},
    network="mimo",
)
TREENET = Method(
    phases,
    usual_sparsity=0.0,
    least_members=2,
    options={"shared_stages": lambda config: stage_count(config.model) - 1},
    network="treenet",
    check=_check_stages,
)
