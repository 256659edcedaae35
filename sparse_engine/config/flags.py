"""Flags made from the fields of Config, and the parser that all commands share."""

import argparse
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from sparse_engine.config.command import run_command
from sparse_engine.config.config import FIELDS, Config
from sparse_engine.config.help import LONG, SHORT, described, shown_by, without_help
from sparse_engine.config.values import ARGUMENTS, EARLIER, GONE, check_text, check_values
from sparse_engine.errors import InputError, RunFailure, nearest, say_renamed
from sparse_engine.paths import expanded

__all__ = ["Parser", "parse_flags", "run_command", "user_path", "user_path_text"]

# What help calls a value, where that is no choice and no text.
_VALUES = {int: "N", float: "X", dict: "JSON"}
# Gives the configuration of some flags.
Decide = Callable[[dict[str, Any]], Config]
# A flag in a message, and the command of ours before it.
_FLAG = re.compile(r"(sparse-engine \w+ )?(?<![\w-])(--[a-z][a-z-]*[a-z])")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InputError in place of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as InputError."""
        raise InputError(message)

    @contextmanager
    def naming_own_flags(self) -> Iterator[None]:
        """Let errors name no flag that this command lacks.

        What it shares with training speaks of settings as training's flags; they are then named as
        config.json has them. Flags of a command that is named in full stay.
        """
        flags = {flag for action in self._actions for flag in action.option_strings}

        def present(match: re.Match[str]) -> str:
            command, flag = match.groups()
            if command or flag in flags:
                return match[0]
            return f"setting '{flag[2:].replace('-', '_')}' of training"

        try:
            yield
        except (InputError, RunFailure) as error:
            words = re.sub(_FLAG, present, str(error))
            if words == str(error):
                raise
            raise type(error)(words) from None

    def parse_strictly(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse; an unknown flag is an InputError with the nearest flag's name."""
        for argument in arguments:
            if "{" not in argument:  # a JSON object may be longer than a name
                check_text(argument, "flags")
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            flags = [f for action in self._actions for f in action.option_strings]
            name = unknown[0].split("=")[0]
            if name.removeprefix("--").replace("-", "_") in GONE:
                raise InputError(f"flag '{name}' was removed; leave it out")
            what = "flag" if name.startswith("-") else "argument"
            raise InputError(f"unknown {what} '{name}'{nearest(name, flags)}; see --help")
        return known


def parse_flags(
    arguments: Sequence[str], description: str, decide: Decide = lambda flags: Config(**flags)
) -> dict[str, Any]:
    """Return the settings given as flags, checked; absent flags are absent.

    Args:
        arguments: of the command line. Where they ask for help, it is printed, and SystemExit
            raised.
        description: what the command does, for help.
        decide: gives the configuration of some flags, whose values help shows as defaults.
    """
    if shown := shown_by(arguments):
        _print_help(shown, description, *_defaults(without_help(arguments), decide))
        raise SystemExit(0)
    parser = _parser(FIELDS, description, Config())
    settings = vars(parser.parse_strictly(arguments))
    for old, new in EARLIER.items():
        if any(argument.partition("=")[0] == _flag(old) for argument in arguments):
            say_renamed("flags", _flag(old), _flag(new))
    return check_values(settings, "flags")


def _defaults(arguments: Sequence[str], decide: Decide) -> tuple[Config, str]:
    """Return what would be decided for some flags, or for none if they cannot be; and a note."""
    try:
        return decide({**parse_flags(arguments, ""), "dry_run": True}), ""
    except InputError as error:
        return decide({}), f", since with what was given: {error}"


def _print_help(shown: Collection[str], description: str, defaults: Config, note: str) -> None:
    words = (
        f"{description} In brackets: defaults of --method {defaults.method} on --dataset "
        f"{defaults.dataset}{note}."
    )
    parser = _parser(shown, words.replace("%", "%%"), defaults)
    if len(shown) < len(FIELDS):
        parser.epilog = f"These are the usual flags. All {len(FIELDS)}: sparse-engine train {LONG}"
    parser.print_help()


def _parser(shown: Collection[str], description: str, defaults: Config) -> Parser:
    """Return the parser of all settings, whose help has some of them."""
    parser = Parser(
        prog="sparse-engine train",
        usage="%(prog)s [flags]",
        description=description,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(*SHORT, action="help", help="show the usual flags, and stop")
    parser.add_argument(LONG, action="help", help="show all flags, and stop")
    groups: dict[str, Any] = {}
    for name, spec in FIELDS.items():
        rules = spec.metadata
        if rules["group"] not in groups:
            groups[rules["group"]] = parser.add_argument_group(rules["group"])
        if rules["kind"] is bool:
            options: dict[str, Any] = {"action": "store_true"}
        else:
            values = rules.get("choices") or (_VALUES.get(rules["kind"], name.upper()),)
            options = {"type": _reader(rules["kind"]), "metavar": "|".join(values)}
        options |= {"dest": name, "default": argparse.SUPPRESS}
        earlier, others = _names_in(EARLIER, name), _names_in(ARGUMENTS, name)
        text = described(rules["help"], others, getattr(defaults, name)).replace("%", "%%")
        group = groups[rules["group"]]
        group.add_argument(
            _flag(name), help=text if name in shown else argparse.SUPPRESS, **options
        )
        for other in (*earlier, *others):
            group.add_argument(other, help=argparse.SUPPRESS, **options)
    return parser


def _names_in(names: Mapping[str, str], setting: str) -> list[str]:
    """Return the flags of a setting's other names."""
    return [_flag(other) for other, own in names.items() if own == setting]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def user_path(text: str) -> Path:
    """Return the path that a flag gives; the `type` of an argument of argparse."""
    return Path(user_path_text(text))


def user_path_text(text: str) -> str:
    """Return the same as text."""
    try:
        return expanded(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _reader(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return json.loads(text) if kind is dict else kind(text)
        except ValueError:
            what = {int: "a whole number", float: "a number", dict: "a JSON object"}[kind]
            raise argparse.ArgumentTypeError(f"takes {what}, found '{text}'") from None

    return read
