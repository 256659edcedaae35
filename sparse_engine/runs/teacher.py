"""A finished run as a teacher: soft labels of its tickets, the weights a ticket is pruned by."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from sparse_engine.config.config import Config
from sparse_engine.data.catalog import DatasetInfo, first_difference
from sparse_engine.errors import InputError
from sparse_engine.layers.surgery import model_density
from sparse_engine.methods.resolve import resolve
from sparse_engine.runs.model import is_plain
from sparse_engine.runs.run_folder import RunFolder
from sparse_engine.runs.tickets import run_info, run_tickets


class Teacher:
    """The networks of a run, which only predict."""

    def __init__(self, models: list[nn.Module]) -> None:
        """Take models, in eval mode from now on."""
        self.models = [model.eval().requires_grad_(False) for model in models]

    @torch.no_grad()
    def probabilities(self, x: Tensor, temperature: float) -> Tensor:
        """Return soft labels [N, K] of images [N, C, H, W], the mean over networks."""
        soft = [(model(x).float() / temperature).softmax(-1) for model in self.models]
        return torch.stack(soft).mean(0)


def load_teacher(config: Config, info: DatasetInfo, device: torch.device) -> Teacher | None:
    """Return the teacher that a configuration names, None if it names none.

    Raises:
        InputError: no run folder, no tickets, another model, image size or class count, or a
            teacher that is sparser than the ticket.
    """
    if config.teacher is None:
        return None
    folder = RunFolder.existing(config.teacher)
    saved = resolve(folder.config())
    name = f"teacher '{config.teacher}'"
    if saved.model != config.model:
        raise InputError(
            f"{name} is a {saved.model}, found --model {config.model}: "
            "a ticket is pruned from its teacher and has its model"
        )
    if not is_plain(saved):
        raise InputError(
            f"{name} is of method '{saved.method}', whose network is no plain {saved.model}; "
            "use the run of a dense network"
        )
    _check_data(name, run_info(folder, saved), config.dataset, info)
    tickets = run_tickets(folder, saved, info)
    try:
        models = [member for ticket in tickets for member in ticket.members(device)]
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    density = model_density(models[0])
    if density < 1 - (config.sparsity or 0.0):
        raise InputError(
            f"{name} has {density:.3g} of its weights, a ticket of sparsity {config.sparsity} "
            "needs more: use the run of a dense network"
        )
    return Teacher(models)


def _check_data(name: str, known: DatasetInfo, dataset: str, info: DatasetInfo) -> None:
    """Raise InputError unless a teacher takes images of the same size, of the same classes."""
    if known.name != info.name:  # whose images are normalised as the run's are
        known = replace(known, mean=info.mean, std=info.std)
    difference = first_difference(known, info)
    if difference:
        words, own, wanted = difference
        raise InputError(
            f"{name} was trained on {known.name}, whose {words} is {own}; that of "
            f"{dataset} is {wanted}: use a teacher of the same classes and image size"
        )
