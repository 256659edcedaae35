"""Several networks that predict as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_engine.errors import InputError
from sparse_engine.models.grouped.group import group
from sparse_engine.models.members import joint_calls, log_mean_probability, members_of
from sparse_engine.runs.tickets import Ticket, check_data_types, check_preprocessing, tickets_of
from sparse_kernels.cpu.threads import in_threads

# Fewer products of a weight and an input are not worth a thread: 6,000 weights for each of 32
# inputs took 1.16 ms in two threads and 0.88 ms in one after another.
LEAST_PRODUCTS = 1_000_000


class Uncertainty(NamedTuple):
    """What an ensemble knows of a batch of N inputs, in nats.

    probabilities: the mean over members [N, K].
    entropy: that of the mean [N], the total uncertainty.
    mutual_information: that of class and member [N], what members disagree on.
    """

    probabilities: Tensor
    entropy: Tensor
    mutual_information: Tensor


class TicketEnsemble(nn.Module):
    """The mean of its members' softmax probabilities (FreeTickets, Liu et al. 2022).

    On a CPU, without gradients, members run in threads of one core each; `grouped` makes them one
    network (models/grouped).

    class_names: what the K classes are called; empty where nothing says.
    """

    __call__: Callable[[Tensor], Tensor]

    def __init__(
        self,
        members: Iterable[nn.Module],
        *,
        grouped: bool = False,
        class_names: Sequence[str] = (),
    ) -> None:
        """Make an ensemble of networks that map the same input to logits [N, K].

        Args:
            members: the networks, kept as they are.
            grouped: whether every layer of all members runs in one launch; weights are copied then.
            class_names: what the K classes are called; load() knows those of the run.

        Raises:
            InputError: no members, something else than networks, different data types, or
                members that cannot be grouped.
        """
        super().__init__()
        members = list(members)
        if not members:
            raise InputError("an ensemble needs at least one member")
        for number, member in enumerate(members, 1):
            if not isinstance(member, nn.Module):
                kind = type(member).__name__
                raise InputError(f"member {number} is a {kind}, no network; load() reads runs")
        check_data_types(members)
        self.members = nn.ModuleList(() if grouped else members)
        self.grouped = group(members) if grouped else None
        self._tickets: Sequence[Ticket] = ()
        self._count = len(members)
        self.class_names = tuple(class_names)

    @classmethod
    def load(
        cls,
        *sources: str | Path,
        resident: bool = True,
        grouped: bool = False,
        data_dir: str | None = None,
    ) -> TicketEnsemble:
        """Return the ensemble of runs, in eval mode, on the CPU.

        Args:
            sources: run folders, all of whose tickets are taken, single member_K.pt in them, or
                tickets exported as .safetensors.
            resident: whether all members stay in memory; else each is read for every batch, and
                only one is in memory at a time.
            grouped: whether they run as one network, as above.
            data_dir: the folder with the data, see tickets_of.

        Raises:
            InputError: no tickets, or tickets that cannot be one ensemble.
        """
        if grouped and not resident:
            raise InputError("a grouped ensemble is resident; leave out one of the two")
        tickets = [ticket for source in sources for ticket in tickets_of(source, data_dir)]
        check_preprocessing(tickets)
        names = next((t.info.class_names for t in tickets if t.info.class_names), ())
        if resident:
            members = [member for ticket in tickets for member in members_of(ticket.load())]
            return cls(members, grouped=grouped, class_names=names).eval()
        # Every file is read once here, so that a wrong one is told of at once.
        members = [m.to("meta") for ticket in tickets for m in members_of(ticket.load())]
        ensemble = cls(members, class_names=names)
        ensemble.members, ensemble._tickets = nn.ModuleList(), tickets
        return ensemble.eval()

    def __len__(self) -> int:
        return self._count

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of N inputs to mean probabilities [N, K], of a type as below."""
        return self.member_probabilities(x).mean(0)

    def log_probabilities(self, x: Tensor) -> Tensor:
        """Map a batch of N inputs to the logarithms of mean probabilities [N, K], float32 or wider.

        They are exact where a probability is too small for its data type; losses and metrics of
        very sure predictions want them (sparse_engine.evaluation.metrics, with log=True).
        """
        return log_mean_probability(self.member_logits(x))

    def member_logits(self, x: Tensor) -> Tensor:
        """Map a batch of N inputs to each member's logits [M, N, K].

        Raises:
            InputError: members have different numbers of classes.
        """
        if self.grouped is not None:
            return self.grouped(x)
        if self._tickets:
            logits = [own for ticket in self._tickets for own in _read_and_run(ticket, x)]
        elif self._shares_cores(x):
            logits = _in_threads(joint_calls(self.members), x)
        else:
            logits = [call(x) for call in joint_calls(self.members)]
        counts = [own.shape[-1] for own in logits for _ in own]
        if len(set(counts)) > 1:
            raise InputError(f"members must have the same number of classes, not {counts}")
        return torch.cat(logits)

    def member_probabilities(self, x: Tensor) -> Tensor:
        """Map a batch of N inputs to each member's probabilities [M, N, K].

        They have the next wider data type than the logits, float32 or float64: half-precision
        probabilities would round away what the members disagree on, and in float32 those of
        logits 104 apart would be 0.
        """
        logits = self.member_logits(x)
        return logits.softmax(-1, dtype=_wider(logits))

    def uncertainty(self, x: Tensor) -> Uncertainty:
        """Return the entropy H of the mean prediction and the mutual information (BALD).

        I = H(mean of p) - mean of H(p), from 0 where members agree to log M where each is sure of
        another class. Source: Houlsby et al. 2011, "Bayesian Active Learning for Classification
        and Preference Learning", equation 2, with members as samples of the posterior.
        """
        members = self.member_probabilities(x)
        mean = members.mean(0)
        entropy = torch.special.entr(mean).sum(-1)
        expected = torch.special.entr(members).sum(-1).mean(0)
        # Rounding alone may make it negative.
        return Uncertainty(mean, entropy, (entropy - expected).clamp(min=0))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep: bool) -> None:
        if self._tickets:
            raise InputError("members on demand stay in their files; load() them resident to save")
        super()._save_to_state_dict(destination, prefix, keep)

    def _shares_cores(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu":
            return False
        weights = sum(p.numel() for p in self.parameters())
        # Batch norm in training mode needs the whole batch.
        whole = any(member.training for member in self.members)
        several = torch.get_num_threads() > 1 and len(self.members) > 1
        return several and not whole and weights * len(x) >= LEAST_PRODUCTS


def _wider(logits: Tensor) -> torch.dtype:
    if logits.dtype.itemsize < 4 or logits.device.type == "mps":  # which has no float64
        return torch.float32
    return torch.float64


def _in_threads(calls: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> list[Tensor]:
    """Return what calls give [m, N, K]; the batch is cut so that every thread makes as many."""
    threads = torch.get_num_threads()
    shares = x.tensor_split(max(1, min(len(x), threads // math.gcd(threads, len(calls)))))
    parts = iter(in_threads([partial(call, share) for call in calls for share in shares]))
    return [torch.cat([next(parts) for _ in shares], 1) for _ in calls]


def _read_and_run(ticket: Ticket, x: Tensor) -> list[Tensor]:
    """Return the logits [m, N, K] of a ticket's members, which are in memory until then."""
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_run)(ticket, x)  # here: its import takes seconds
    return _run(ticket, x)


def _run(ticket: Ticket, x: Tensor) -> list[Tensor]:
    return [call(x) for call in joint_calls(ticket.members(x.device))]
