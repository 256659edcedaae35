"""What a run remembers of its members: how good they are, and states to come back to.

A state is {"accuracy": on the held-out split, "model": a state dict}, an average's its "count" too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sparse_engine.layers.state_dict import check_model
from sparse_engine.methods.actions import State
from sparse_engine.schema import check_like, demand


class _OfMembers(list[Any]):
    """Something of each member that trains."""

    def state_dict(self) -> list[Any]:
        """Return what a resumed run needs."""
        return list(self)

    def load_state_dict(self, state: Sequence[Any]) -> None:
        """Continue from state_dict()."""
        self[:] = state


class Accuracies(_OfMembers):
    """The present accuracy of each member."""

    def check_state(self, state: Sequence[Any]) -> None:
        """Raise InputError unless a state is of as many members."""
        demand(len(state) == len(self), "accuracy", f"a list of {len(self)}", state)
        for accuracy in state:
            _check_accuracy(accuracy, "accuracy")


class BestStates(_OfMembers):
    """The best state of each member in a phase so far, where validation data choose."""

    def check_state(self, state: Sequence[Any], members: Sequence[nn.Module]) -> None:
        """Raise InputError unless a state is of all these members, or empty."""
        count = len(members)
        demand(len(state) in (0, count), "best", f"a list of {count} states, or empty")
        for best in state:
            _check_state(best, ("accuracy", "model"), members[0], "best")


class KeptStates(dict[str, State]):
    """The states by name that later phases need."""

    def state_dict(self) -> dict[str, State]:
        """Return what a resumed run needs."""
        return dict(self)

    def check_state(
        self, state: Any, model: nn.Module, expected: Mapping[str, Iterable[str]]
    ) -> None:
        """Raise InputError unless a state has the states of a model that are expected by now.

        Args:
            state: what a file holds.
            model: a member.
            expected: names of the states, and what each holds.
        """
        fits = isinstance(state, Mapping) and state.keys() == expected.keys()
        demand(fits, "kept", f"states by name, {sorted(expected)}")
        for name, keys in expected.items():
            _check_state(state[name], keys, model, f"kept.{name}")

    def load_state_dict(self, state: Mapping[str, State]) -> None:
        """Continue from state_dict()."""
        self.clear()
        self.update(state)


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose tensors are no longer the model's."""
    return {name: value.detach().clone() for name, value in state.items()}


def _check_accuracy(accuracy: Any, name: str) -> None:
    check_like(accuracy, 0.0, name)
    demand(0 <= accuracy <= 1, name, "from 0 to 1", accuracy)


def _check_state(state: Any, keys: Iterable[str], model: nn.Module, name: str) -> None:
    fits = isinstance(state, Mapping) and state.keys() == set(keys)
    demand(fits, name, f"an object with {', '.join(keys)}")
    _check_accuracy(state["accuracy"], f"{name}.accuracy")
    check_model(model, state["model"], f"{name}.model")
    count = state.get("count", 1)
    demand(type(count) is int and count >= 1, f"{name}.count", "a whole number from 1", count)
