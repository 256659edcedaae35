"""The tickets of a run as networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from sparse_engine.architecture import dense_model
from sparse_engine.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.errors import InputError
from sparse_engine.run_folder import RunFolder
from sparse_engine.state_dict import check_model, load_state


def load_tickets(
    config: Config, info: DatasetInfo, folder: RunFolder, misfit: str | None = None
) -> Iterator[nn.Module]:
    """Yield the network of each ticket of a run, on the CPU, with the blocks it was saved with.

    Args:
        config: of the run, resolved.
        info: of its data set.
        misfit: what to say of a ticket that is not of this configuration.

    Raises:
        InputError: there are no tickets, or one does not fit.
    """
    for state in folder.load_members():
        words = misfit or f"a ticket of run '{folder.path}' does not fit its configuration"
        yield ticket_model(config, info, state, words)


def ticket_model(
    config: Config, info: DatasetInfo, state: Mapping[str, Tensor], misfit: str
) -> nn.Module:
    """Return the network of a ticket's state dict; arguments as of load_tickets."""
    model = dense_model(config, info)
    try:
        check_model(model, state, "its state")
        load_state(model, state)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{misfit}: {error}") from None
    return model
