"""What decides which blocks an update drops and grows, beyond the rule. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_engine.errors import InputError

SCORES = ("l1", "l2", "max")


@dataclass(frozen=True)
class Criteria:
    """How blocks are chosen, by any rule.

    score: norm of a block's weights that decides what is dropped, and of its dense gradient that
        decides what grows: "l1", "l2" (root of the sum of squares) or "max" (largest magnitude).
        Nothing is divided by a size, so a ragged edge block counts by the weights that it has.
    """

    score: str = "l1"

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise InputError(f"unknown score '{self.score}'; use {', '.join(SCORES)}")

    def check_rule(self, rule: str) -> None:
        """Raise InputError for criteria of updates where a rule, or a dense method, has none."""
        if rule in ("static", "dense") and self.score != "l1":
            raise InputError(
                f"score '{self.score}' decides what topology updates drop and grow, and "
                f"topology '{rule}' has none; leave it out"
            )


USUAL = Criteria()
