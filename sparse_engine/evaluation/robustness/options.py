"""What an evaluation is asked for: its flags, checked. Imports no torch."""

import argparse
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from sparse_engine.config.flags import user_path
from sparse_engine.errors import InputError, nearest
from sparse_engine.installed import require
from sparse_engine.paths import expanded

ATTACKS = ("fgsm", "pgd")
SEVERITIES = "12345"
# Flags that mean nothing without another one.
_NEEDED_BY = {
    "severities": "corruptions",
    "epsilon": "attack",
    "attack_steps": "attack",
    "attack_images": "attack",
}


@dataclass(frozen=True)
class Options:
    """What to evaluate beside the clean test split, and where to put it.

    `severities` is empty without corruptions; `epsilon` is in pixels from 0 to 1; `compare` times
    predictions against one dense network's.
    """

    severities: tuple[int, ...] = ()
    foreign: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    epsilon: float = 8 / 255
    attack_steps: int = 10
    attack_images: int | None = None
    out: Path | None = None
    plots: Path | None = None
    compare: bool = False


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of Options."""
    robust = parser.add_argument_group("beyond the test split")
    robust.add_argument(
        "--corruptions",
        action="store_true",
        help="15 families of corrupted images, of CIFAR-10-C and CIFAR-100-C in the data folder "
        "or made from the test split",
    )
    robust.add_argument("--severities", metavar="LIST", help="of corruptions [1,2,3,4,5]")
    robust.add_argument(
        "--ood",
        action="append",
        default=[],
        metavar="DATASET|noise",
        help="tell another data set, or noise, from this one; may be repeated",
    )
    robust.add_argument("--attack", metavar="LIST", help="fgsm, pgd, or both: fgsm,pgd")
    robust.add_argument("--epsilon", metavar="E", help="of attacks, pixels from 0 to 1 [8/255]")
    robust.add_argument("--attack-steps", metavar="N", help="of pgd [10]")
    robust.add_argument("--attack-images", metavar="N", help="attack only N test images [all]")
    parser.add_argument(
        "--no-compare",
        action="store_true",
        help="do not time predictions against one dense network's",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=user_path, metavar="FILE.json", help="write the JSON here, too"
    )
    output.add_argument(
        "--plots", type=user_path, metavar="DIR", help="draw figures here, with matplotlib"
    )


def read_options(flags: argparse.Namespace) -> Options:
    """Return the options of parsed flags.

    Raises:
        InputError: a value out of range, a flag without the one it belongs to, an output that
            exists, or --plots without matplotlib.
    """
    for name, needed in _NEEDED_BY.items():
        if getattr(flags, name) is not None and not getattr(flags, needed):
            raise InputError(f"--{name.replace('_', '-')} means nothing without --{needed}")
    if flags.out is not None:
        _check_new_file(flags.out)
    if flags.plots is not None:
        _check_plots_folder(flags.plots)
    return Options(
        severities=_severities(flags.severities) if flags.corruptions else (),
        foreign=tuple(dict.fromkeys(map(expanded, flags.ood))),
        attacks=() if flags.attack is None else _attacks(flags.attack),
        epsilon=_epsilon("8/255" if flags.epsilon is None else flags.epsilon),
        attack_steps=_whole("--attack-steps", flags.attack_steps) or 10,
        attack_images=_whole("--attack-images", flags.attack_images),
        out=flags.out,
        plots=flags.plots,
        compare=not flags.no_compare,
    )


def _severities(text: str | None) -> tuple[int, ...]:
    texts = SEVERITIES if text is None else text.split(",")
    numbers = sorted({_whole("--severities", part) or 0 for part in texts})
    if numbers[-1] > len(SEVERITIES):
        raise InputError(f"--severities lie between 1 and {SEVERITIES[-1]}, found {numbers[-1]}")
    return tuple(numbers)


def _attacks(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in ATTACKS:
            hint = nearest(name, ATTACKS) or f"; choose from {', '.join(ATTACKS)}"
            raise InputError(f"unknown attack '{name}'{hint}")
    return names


def _epsilon(text: str) -> float:
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(
            f"--epsilon takes a number such as 8/255 or 0.03, found '{text}'"
        ) from None
    if not 0 < value <= 1:
        raise InputError(f"--epsilon must be above 0 and at most 1 (white - black), found {text}")
    return value


def _whole(flag: str, text: str | None) -> int | None:
    if text is not None and (not text.strip().isdecimal() or int(text) < 1):
        raise InputError(f"{flag} takes whole numbers from 1, found '{text}'")
    return None if text is None else int(text)


def _check_new_file(path: Path) -> None:
    if path.exists():
        raise InputError(f"output file '{path}' exists; choose another --out, or remove it")
    if not path.parent.is_dir():
        raise InputError(f"folder '{path.parent}' of --out does not exist; make it first")


def _check_plots_folder(path: Path) -> None:
    require("--plots", "matplotlib")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"folder '{path}' of --plots exists and is not empty; choose another")
