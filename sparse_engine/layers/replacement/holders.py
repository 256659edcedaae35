"""Where layers are held inside a model besides its modules: lists, attributes, closures, methods.

The search walks from the model along what objects hold, so it sees what hangs on the model and
nothing else: a list in a user's script is not seen.
"""

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.layers.replacement.containers import Holder, can_rebuild, is_atom
from sparse_engine.layers.replacement.references import holders_of

# A model's own objects are some thousands; data sets that hang on a model are not searched whole.
MOST_OBJECTS = 500_000


class Wanted(NamedTuple):
    """An object that is looked for.

    what: as in "layer 'first'".
    pattern: of the names of layers that stay dense if it stays as it is.
    """

    what: str
    pattern: str


class Holders:
    """Everything inside a model that leads to the objects that are wanted.

    is_complete: whether all that hangs on the model was searched.
    """

    def __init__(self, model: nn.Module, wanted: Mapping[int, Wanted]) -> None:
        """Search a model.

        Args:
            model: where the search begins.
            wanted: by the objects' ids, which must stay alive.
        """
        self._wanted = wanted
        self._objects: dict[int, Any] = {id(model): model}
        self._found_at: dict[int, tuple[int, str]] = {}
        self._held: dict[int, list[tuple[int, str, Holder]]] = {}
        self.is_complete = self._walk(model)

    def _walk(self, model: nn.Module) -> bool:
        ahead = deque([model])
        while ahead and len(self._objects) < MOST_OBJECTS:
            value = ahead.popleft()
            for holder in holders_of(value):
                for label, child in holder.children(value):
                    key = id(child)
                    is_class = isinstance(child, type) and not label
                    if is_atom(child) and not is_class and key not in self._wanted:
                        continue
                    self._held.setdefault(key, []).append((id(value), label, holder))
                    if key not in self._objects:
                        self._objects[key], self._found_at[key] = child, (id(value), label)
                        ahead.append(child)
        return not ahead

    def exchange(self, fixed: Collection[int] = ()) -> "Exchange":
        """Return how the wanted objects can be exchanged, before anything is.

        Args:
            fixed: ids of wanted objects that nothing else can stand for.

        Raises:
            InputError: one is held where it cannot be exchanged.
        """
        # Which wanted object everything that changes leads to.
        leads_to = {key: key for key in self._wanted}
        written: dict[tuple[int, int], tuple[Any, Holder]] = {}
        rebuilt: dict[int, tuple[Any, Holder]] = {}
        ahead = deque(leads_to)
        while ahead:
            key = ahead.popleft()
            for owner, label, holder in self._held.get(key, ()):
                value = self._objects[owner]
                can_change = holder.write or (holder.rebuild and can_rebuild(value))
                if key in fixed or not can_change:
                    raise InputError(self._refusal(leads_to[key], owner, label))
                if holder.write:
                    written[owner, id(holder)] = value, holder
                elif owner not in leads_to:
                    leads_to[owner], rebuilt[owner] = leads_to[key], (value, holder)
                    ahead.append(owner)
        others = [found for (owner, _), found in written.items() if owner not in self._wanted]
        return Exchange(others, rebuilt)

    def _refusal(self, key: int, owner: int, label: str) -> str:
        what, pattern = self._wanted[key]
        return (
            f"{what} is also held in {self._path(owner)}{label}, where it cannot be exchanged: set "
            f"that after this call, or leave the layer dense with skip=['{pattern}']"
        )

    def _path(self, key: int) -> str:
        labels: list[str] = []
        while key in self._found_at:
            key, label = self._found_at[key]
            labels.append(label)
        return type(self._objects[key]).__name__ + "".join(reversed(labels))


class Exchange:
    """What is written, and what is built anew, where objects take the place of others."""

    def __init__(
        self, written: list[tuple[Any, Holder]], rebuilt: Mapping[int, tuple[Any, Holder]]
    ) -> None:
        self._written, self._rebuilt = written, rebuilt
        self._new: dict[int, Any] = {}

    def apply(self, new: Mapping[int, Any]) -> None:
        """Put objects in the places of others, which are named by id and must be alive."""
        self._new |= new
        for value, holder in self._written:
            assert holder.write is not None
            holder.write(value, self.new_of)

    def new_of(self, value: Any) -> Any:
        """Return what stands for an object after apply()."""
        key = id(value)
        if key not in self._new and key in self._rebuilt:
            old, holder = self._rebuilt[key]
            assert holder.rebuild is not None
            self._new[key] = holder.rebuild(old, self.new_of)
        return self._new.get(key, value)
