"""Which model names there are. Imports no torch, so that the command line answers at once."""

import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

from sparse_engine.errors import InputError, nearest

IMAGENET_RESNET_DEPTHS = (18, 34, 50, 101, 152)
TORCHVISION_PREFIX = "torchvision/"


class Architecture(NamedTuple):
    """A parsed model name: the family, and what tells its members apart.

    `arguments` is (depth, width) for `wrn`, (depth,) for `resnet`, (name,) for `torchvision`
    and empty for `vgg16` and `mlp`.
    """

    family: str
    arguments: tuple


def names() -> list[str]:
    """Return example names, one or more of every family, for help texts."""
    resnets = [f"resnet{depth}" for depth in (18, 34, 50, 20, 56, 110)]
    return ["wrn28-10", "wrn16-2", *resnets, "vgg16", "mlp", "torchvision/resnet50"]


def check_name(name: str) -> None:
    """Raise InputError unless `name` is a model name.

    What follows `torchvision/` is checked when the model is built, since that needs torchvision.
    """
    parse_name(name)


def parse_name(name: str) -> Architecture:
    """Return the architecture that `name` stands for, or raise InputError with the nearest name."""
    if found := re.fullmatch(r"wrn([0-9]{1,4})-([0-9]{1,4})", name):
        depth, width = int(found[1]), int(found[2])
        _check_depth(name, depth, _is_wide_resnet_depth, "6k + 4")
        if width < 1:
            raise InputError(f"model '{name}': the width must be at least 1, as in 'wrn{depth}-2'")
        return Architecture("wrn", (depth, width))
    if found := re.fullmatch(r"resnet([0-9]{1,4})", name):
        depth = int(found[1])
        kinds = ", ".join(map(str, IMAGENET_RESNET_DEPTHS))
        _check_depth(name, depth, _is_resnet_depth, f"6k + 2, nor one of {kinds}")
        return Architecture("resnet", (depth,))
    if name in ("vgg16", "mlp"):
        return Architecture(name, ())
    if name.startswith(TORCHVISION_PREFIX) and name != TORCHVISION_PREFIX:
        return Architecture("torchvision", (name.removeprefix(TORCHVISION_PREFIX),))
    hint = nearest(name.lower(), names()) or f"; choose one like {', '.join(names())}"
    raise InputError(f"unknown model {name!r}{hint}")


def stage_count(name: str) -> int:
    """Return how many stages the model has whose name this is, the head not counted.

    Of torchvision only the ResNets have stages (see stages.py).
    """
    family, arguments = parse_name(name)
    if family == "resnet":
        return 4 if arguments[0] in IMAGENET_RESNET_DEPTHS else 3
    return {"wrn": 3, "vgg16": 5, "mlp": 2, "torchvision": 4}[family]


def narrower(name: str, share: float) -> str | None:
    """Return the model of a family that has a share of its FLOPs, or a little less, by its width.

    None where a family has one width, or no narrower one of as few FLOPs.
    """
    family, arguments = parse_name(name)
    if family != "wrn":
        return None
    depth, width = arguments
    narrow = int(width * min(share, 1.0) ** 0.5)
    return f"wrn{depth}-{narrow}" if 1 <= narrow < width else None


def _is_wide_resnet_depth(depth: int) -> bool:
    return depth >= 10 and depth % 6 == 4


def _is_resnet_depth(depth: int) -> bool:
    return depth in IMAGENET_RESNET_DEPTHS or (depth >= 8 and depth % 6 == 2)


def _check_depth(name: str, depth: int, is_valid: Callable[[int], bool], rule: str) -> None:
    if is_valid(depth):
        return
    below = next(filter(is_valid, range(depth - 1, 0, -1)), None)
    above = next(filter(is_valid, itertools.count(depth + 1)))
    choices = f"{below} or {above}" if below else f"{above}"
    raise InputError(f"model '{name}': depth {depth} is not {rule}; the nearest is {choices}")
