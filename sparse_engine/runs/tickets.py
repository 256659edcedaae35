"""The tickets of a run as networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.load import dataset_info
from sparse_engine.errors import InputError
from sparse_engine.layers.state_dict import check_model, load_state
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.exported import SUFFIX, exported_facts, load_safetensors
from sparse_engine.runs.model import dense_model
from sparse_engine.runs.run_folder import RunFolder, load_ticket


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


_PREPROCESSING = {
    "classes": "number of classes",
    "channels": "number of channels",
    "height": "image height",
    "width": "image width",
    "mean": "normalisation (mean)",
    "std": "normalisation (deviation)",
}


@dataclass(frozen=True)
class TicketFile:
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
        misfit = f"'{self.path}' does not fit the configuration of its run"
        return ticket_model(self.config, self.info, state, misfit).eval()


def ticket_files(source: str | Path, data_dir: str | None = None) -> list[TicketFile]:
    """Return the tickets of a run folder, or the one of a file.

    Args:
        source: run folder, a member_K.pt in one, or a ticket exported as .safetensors.
        data_dir: with the data, if it is not where it was in training; only a data set that is a
            file of the user's own needs it.

    Raises:
        InputError: there is no run or no ticket.
    """
    path = Path(source)
    if path.suffix in (SUFFIX, ".pt") and not path.exists():
        raise InputError(f"ticket '{path}' does not exist")
    if path.suffix == SUFFIX:
        return [TicketFile(path, *exported_facts(path))]
    if path.is_file() and not path.match("member_*.pt"):
        raise InputError(
            f"'{path}' is no ticket: give the folder of a run, a member_K.pt in it, "
            f"or an exported {SUFFIX} file"
        )
    folder = RunFolder.existing(str(path.parent if path.is_file() else path))
    saved = folder.config()
    config = resolve(replace(saved, backend="auto", data_dir=data_dir or saved.data_dir))
    info = dataset_info(config.dataset, config.data_dir)
    paths = [path] if path.is_file() else folder.member_paths()
    return [TicketFile(path, config, info) for path in paths]


def check_preprocessing(files: Iterable[TicketFile]) -> None:
    """Raise InputError unless all tickets take the same images and have the same classes."""
    first: TicketFile | None = None
    for file in files:
        first = first or file
        for name, words in _PREPROCESSING.items():
            found, expected = getattr(file.info, name), getattr(first.info, name)
            if found != expected:
                raise InputError(
                    f"'{file.path}' and '{first.path}' cannot be one ensemble: "
                    f"{words} is {found} in one and {expected} in the other"
                )


def check_data_types(models: Sequence[nn.Module]) -> None:
    """Raise InputError unless all members have parameters of the same data types."""
    found = [{p.dtype for p in model.parameters()} for model in models]
    for number, dtypes in enumerate(found[1:], 2):
        if dtypes != found[0]:
            own, first = (" and ".join(sorted(map(str, d))) or "none" for d in (dtypes, found[0]))
            raise InputError(
                f"members must have one data type: {own} in member {number}, {first} in member 1; "
                "convert them with .to(dtype)"
            )
