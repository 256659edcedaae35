"""The tickets of a run as networks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo, first_difference
from sparse_engine.data.load import dataset_info
from sparse_engine.errors import InputError
from sparse_engine.layers.state_dict import check_model, load_state
from sparse_engine.methods.resolve import resolve
from sparse_engine.models.members import members_of
from sparse_engine.paths import expanded
from sparse_engine.runs.model import trained_model
from sparse_engine.runs.run_folder import RunFolder, load_ticket
from sparse_engine.runs.safetensors import SUFFIX, exported_facts, load_safetensors


@dataclass(frozen=True)
class Ticket:
    """Where a ticket is, the resolved configuration of its run, and its data set."""

    path: Path
    config: Config
    info: DatasetInfo

    def load(self) -> nn.Module:
        """Return the network in eval mode, on the CPU, with the blocks it was saved with.

        Raises:
            InputError: the file cannot be read or is not of its configuration.
        """
        if self.path.suffix == SUFFIX:
            return load_safetensors(self.path)
        state = load_ticket(self.path)
        model = trained_model(self.config, self.info)
        try:
            check_model(model, state, "its state", self.config.taps)
            load_state(model, state, self.config.taps)
        except (RuntimeError, ValueError) as error:
            misfit = f"'{self.path}' does not fit the configuration and the data of its run"
            raise InputError(f"{misfit}: {error}; restore the ticket, or the data") from None
        return model.eval()

    def members(self, device: torch.device | str = "cpu") -> list[nn.Module]:
        """Return its members as models that give logits [N, K], on a device, as load does."""
        return members_of(self.load().to(device))


def tickets_of(source: str | Path, data_dir: str | None = None) -> list[Ticket]:
    """Return the tickets of a run folder, or the one of a file.

    Args:
        source: a run folder, a member_K.pt in one, or a ticket exported as .safetensors.
        data_dir: the folder with the data, if it is not where it was in training; only a data set
            that is a file of the user's own needs it.

    Raises:
        InputError: there is no run or no ticket.
    """
    path = Path(expanded(str(source)))
    if path.suffix in (SUFFIX, ".pt") and not path.exists():
        raise InputError(f"ticket '{path}' does not exist")
    if path.suffix == SUFFIX:
        return [Ticket(path, *exported_facts(path))]
    if path.is_file() and not path.match("member_*.pt"):
        raise InputError(
            f"'{path}' is no ticket: give the folder of a run, a member_K.pt in it, "
            f"or an exported {SUFFIX} file"
        )
    folder = RunFolder.existing(str(path.parent if path.is_file() else path))
    saved = folder.config()
    config = resolve(replace(saved, backend="auto", data_dir=data_dir or saved.data_dir))
    info = run_info(folder, config)
    return [Ticket(path, config, info)] if path.is_file() else run_tickets(folder, config, info)


def run_info(folder: RunFolder, config: Config) -> DatasetInfo:
    """Return sizes, normalisation and class names of a run's data, as its folder has them.

    Those of earlier versions have none; the data set itself is asked then.
    """
    return folder.info() or dataset_info(config.dataset, config.data_dir, config.preparation)


def run_tickets(folder: RunFolder, config: Config, info: DatasetInfo) -> list[Ticket]:
    """Return the tickets of a run, whose configuration is resolved, in order.

    Raises:
        InputError: there are none.
    """
    return [Ticket(path, config, info) for path in folder.member_paths()]


def check_preprocessing(tickets: Iterable[Ticket]) -> None:
    """Raise InputError unless all tickets take the same images and have the same classes."""
    first: Ticket | None = None
    for ticket in tickets:
        first = first or ticket
        difference = first_difference(ticket.info, first.info)
        if difference:
            words, own, expected = difference
            raise InputError(
                f"'{ticket.path}' and '{first.path}' cannot be one ensemble: "
                f"{words} is {own} in one and {expected} in the other; load them apart"
            )


def check_data_types(models: Sequence[nn.Module]) -> None:
    """Raise InputError unless all members have parameters of the same data types."""
    kinds = [{p.dtype for p in model.parameters()} for model in models]
    for number, dtypes in enumerate(kinds[1:], 2):
        if dtypes != kinds[0]:
            own, first = (" and ".join(sorted(map(str, d))) or "none" for d in (dtypes, kinds[0]))
            raise InputError(
                f"members must have one data type: {own} in member {number}, {first} in member 1; "
                "convert them with .to(dtype)"
            )
