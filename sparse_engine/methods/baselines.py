"""What ticket ensembles are compared with: which methods these are, and what they refuse.

They are dense, or with --sparsity of random blocks that stay. Imports no torch.
"""

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.models.catalog import stage_count

SEVERAL_MEMBERS = ("deep-ensemble", "snapshot", "fge", "batch-ensemble", "mimo", "treenet")
BASELINES = (*SEVERAL_MEMBERS, "mc-dropout")


def check_baseline(config: Config) -> None:
    """Raise InputError for a resolved configuration that a baseline cannot take."""
    method, members = config.method, config.members or 1
    if method in SEVERAL_MEMBERS and members < 2:
        raise InputError(
            f"method '{method}' is of several members, found members {members}; "
            "use at least 2, or --method dense"
        )
    if method == "deep-ensemble" and config.sparsity:
        raise InputError(
            f"method 'deep-ensemble' is of dense networks, found sparsity {config.sparsity}; "
            "use --method dst-ensemble --topology static"
        )
    if method == "mc-dropout" and not config.dropout:
        raise InputError("method 'mc-dropout' needs dropout; use --dropout 0.1, or another rate")
    if method == "treenet" and (config.shared_stages or 1) > stage_count(config.model):
        stages = stage_count(config.model)
        raise InputError(
            f"model '{config.model}' has {stages} stages, found shared_stages "
            f"{config.shared_stages}; {stages} leaves each branch only a classifier"
        )
    if method == "batch-ensemble" and (config.batch_size or 0) < 2 * members:
        raise InputError(
            f"method 'batch-ensemble' shares a batch of {config.batch_size} out to {members} "
            f"members, and each needs 2 images; use --batch-size {2 * members} or more"
        )
