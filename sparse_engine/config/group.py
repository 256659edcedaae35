"""How a setting is declared: a dataclass field that is also a flag. Imports no torch."""

from dataclasses import field
from typing import Any


class Group:
    """The settings under one heading of --help.

    Every method returns a field. `help` is one line; None as default means that the recipe or the
    method decides. Numbers have limits: `above`, `least` and `most`.
    """

    def __init__(self, name: str) -> None:
        """Take the heading."""
        self.name = name

    def text(self, help: str, default: str | None = None) -> Any:
        """A string."""
        return self._field(help, default, kind=str)

    def choice(self, help: str, choices: str | tuple[str, ...]) -> Any:
        """One of several strings, the first unless said; "a|b|c" is ("a", "b", "c")."""
        choices = _several(choices)
        return self._field(help, choices[0], kind=str, choices=choices)

    def option(self, help: str, choices: str | tuple[str, ...]) -> Any:
        """One of several strings, as those of `choice`, or None."""
        return self._field(help, None, kind=str, choices=_several(choices))

    def whole(self, help: str, default: int | None = None, **limits: int) -> Any:
        """A whole number."""
        return self._field(help, default, kind=int, **limits)

    def number(self, help: str, default: float | None = None, **limits: float) -> Any:
        """A number."""
        return self._field(help, default, kind=float, **limits)

    def switch(self, help: str) -> Any:
        """A flag without a value, False unless given."""
        return self._field(help, False, kind=bool)

    def mapping(self, help: str) -> Any:
        """A JSON object, or None."""
        return self._field(help, None, kind=dict)

    def _field(self, help: str, default: Any, **rules: Any) -> Any:
        return field(default=default, metadata={"group": self.name, "help": help, **rules})


def _several(choices: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(choices.split("|")) if isinstance(choices, str) else choices
