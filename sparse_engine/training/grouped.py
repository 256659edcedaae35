"""The network of a run whose members train as one, and its batches.

To the trainer it is a network like others: its batch is the members' batches one after another,
and what is saved of it is what the members are by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from sparse_engine.config.config import Config
from sparse_engine.data.arrays import ImageArrays
from sparse_engine.data.catalog import DatasetInfo
from sparse_engine.data.folder import FolderLoader
from sparse_engine.data.loader import ArrayLoader
from sparse_engine.data.splits import Split, training_loader
from sparse_engine.layers.rows import to_rows
from sparse_engine.models.grouped.members import GroupedMembers
from sparse_engine.sparsity.saliency import saliency_batches
from sparse_engine.training.fusing import runs_in_rows
from sparse_engine.training.group_topology import GroupTopology
from sparse_engine.training.network import (
    Network,
    build_model,
    build_optimizer,
    member_seed,
    rule_of,
)


@dataclass
class GroupedNetwork(Network):
    """Members as one network, without fused passes."""

    model: GroupedMembers

    def __post_init__(self) -> None:
        """Take the group as it was made."""

    @property
    def members(self) -> list[nn.Module]:
        """The networks that become tickets: views of the group."""
        return self.model.members

    @property
    def stored(self) -> nn.Module:
        """The members by number; how they lie in the group is nobody else's matter."""
        return nn.ModuleList(self.members)

    def _changed(self) -> None:
        self.model = _as_one_model(self.members, self.in_rows)


class MemberLoaders:
    """The batches of all members, one after another, with the interface of `ArrayLoader`."""

    def __init__(self, loaders: Sequence[ArrayLoader | FolderLoader], apart: int) -> None:
        """Take loaders of equal sizes.

        Args:
            loaders: one for each member.
            apart: steps from the first step of one member to that of the next, were they trained
                one after another: a step's images depend on its number in the whole run.
        """
        self.steps_per_epoch, self.batch_size = loaders[0].steps_per_epoch, loaders[0].batch_size
        self._loaders, self._apart = loaders, apart

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images float32 [M * B, C, H, W] and labels int64 [M * B] of a step from 0."""
        steps = count(step, self._apart)
        batches = [loader.batch(own) for loader, own in zip(self._loaders, steps)]
        images, labels = zip(*batches, strict=True)
        return torch.cat(images), torch.cat(labels)


def start_group(
    config: Config,
    split: Split,
    info: DatasetInfo,
    device: torch.device,
    steps: int,
    sparsity: float | None = None,
) -> tuple[GroupedNetwork, MemberLoaders]:
    """Return fresh members as one network, and their batches.

    Args:
        config: resolved.
        split: training images.
        info: of the data set.
        device: where they will be.
        steps: of each member.
        sparsity: the configuration's unless said.

    Raises:
        InputError: the model cannot be grouped, or a layer is sparse in some members only.
    """
    if isinstance(split, ImageArrays):
        split = split.to(device)  # once for all members
    seeds = [member_seed(config.seed, member) for member in range(config.members or 1)]
    models, loaders = [], []
    for member, seed in enumerate(seeds):
        loader = training_loader(split, info, config.batch_size, device, seed, config.workers)
        start = saliency_batches(config.start, loader, info.classes)
        models.append(build_model(config, info, device, member, sparsity, start))
        loaders.append(loader)
    in_rows = runs_in_rows(config, models[0], device)
    grouped = _as_one_model(models, in_rows)
    optimizer, rate = build_optimizer(config, grouped, device)
    topology = GroupTopology(grouped, optimizer, rule_of(config), seeds, config.cover)
    norm_decay = config.norm_decay != "off"
    network = GroupedNetwork(grouped, optimizer, topology, rate, norm_decay, in_rows=in_rows)
    return network, MemberLoaders(loaders, steps)


def _as_one_model(models: Sequence[nn.Module], in_rows: bool) -> GroupedMembers:
    for model in models:
        # Members that were grouped before are views, and need not lie as a model's weights do.
        model.to(memory_format=torch.channels_last)
        if in_rows:
            to_rows(model)
    return GroupedMembers(models)
