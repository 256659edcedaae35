"""What decides which blocks an update drops and grows, beyond the rule. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_engine.errors import InputError, nearest

SCORES = ("l1", "l2", "max")
FAN_INS = ("free", "constant")


@dataclass(frozen=True)
class Criteria:
    """How blocks are chosen, by any rule.

    score: norm of a block's weights that decides what is dropped, and of its dense gradient that
        decides what grows: "l1", "l2" (root of the sum of squares) or "max" (largest magnitude).
        Nothing is divided by a size, so a ragged edge block counts by the weights that it has.
    fan_in: "free", or "constant": all output blocks of a layer have as many blocks, within one.
    """

    score: str = "l1"
    fan_in: str = "free"

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise InputError(f"unknown score '{self.score}'; use {', '.join(SCORES)}")
        if self.fan_in not in FAN_INS:
            hint = nearest(str(self.fan_in), FAN_INS)
            raise InputError(f"unknown fan-in '{self.fan_in}'{hint}; use {' or '.join(FAN_INS)}")

    def check_rule(self, rule: str) -> None:
        """Raise InputError for criteria of updates where a rule, or a dense method, has none."""
        if rule in ("static", "dense") and self.score != "l1":
            raise InputError(
                f"score '{self.score}' is of topology updates, and topology '{rule}' has none; "
                "leave it out"
            )


USUAL = Criteria()
