"""Where a run is among its phases, and how long it still takes."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparse_engine.methods.phase import Phase
from sparse_engine.schema import check_like, demand


@dataclass
class Progress:
    """Where a run is.

    step: of the whole run; phase_step: of the phase; begun: whether the phase's first actions
    are done; tickets: saved so far.
    """

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    begun: bool = False
    member: int = -1
    tickets: int = 0
    train_seconds: float = 0.0

    @property
    def phases_begun(self) -> int:
        """How many phases have begun, those that are over among them."""
        return self.phase + self.begun

    def steps_of(self, phases: Sequence[Phase]) -> int:
        """Return how many steps of these phases are made."""
        return sum(phase.steps for phase in phases[: self.phase]) + self.phase_step

    def kept(self, phases: Sequence[Phase]) -> dict[str, tuple[str, ...]]:
        """Return what each of the states holds, by name, that the actions so far have kept."""
        actions = [a for phase in phases[: self.phase] for a in (*phase.begin, *phase.end)]
        actions += phases[self.phase].begin if self.begun else ()
        return {action.name: action.keeps for action in actions if action.keeps}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return asdict(self)

    def check_state(self, state: Any, phases: Sequence[Phase]) -> None:
        """Raise InputError unless a state is of a place in a list of phases that begins here."""
        check_like(state, asdict(self), "progress")
        phase, done, begun = state["phase"], state["phase_step"], state["begun"]
        demand(0 <= phase <= len(phases), "progress.phase", f"from 0 to {len(phases)}", phase)
        steps = phases[phase].steps if phase < len(phases) and begun else 1
        demand(0 <= done < steps, "progress.phase_step", f"from 0 to {steps - 1}", done)
        demand(bool(phase or begun), "progress", "at or after the first step")
        demand(not begun or phase < len(phases), "progress.begun", "false after the last phase")
        over, started = phases[:phase], phases[: phase + begun]
        actions = [action for p in started for action in p.begin]
        expected = {
            "step": self.step + sum(p.steps for p in over) + done,
            "tickets": self.tickets + sum(p.tickets for p in over),
            "member": self.member + sum(action.starts_member for action in actions),
        }
        for name, value in expected.items():
            demand(state[name] == value, f"progress.{name}", f"{value} there", state[name])
        seconds = state["train_seconds"]
        demand(0 <= seconds < math.inf, "progress.train_seconds", "a time", seconds)


class TimeLeft:
    """How long a run still takes, at the mean pace since this was made.

    What is done between steps (evaluations, checkpoints) counts with them.
    """

    def __init__(self, done: int, total: int) -> None:
        """Begin where `done` of `total` steps are made."""
        self._first, self._total, self._began = done, total, time.perf_counter()

    def seconds(self, done: int) -> float:
        """Return the seconds for all steps that are left; one at least was made since the begin."""
        pace = (time.perf_counter() - self._began) / (done - self._first)
        return pace * (self._total - done)
