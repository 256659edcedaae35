"""Which jobs of a run have ended, so that a second call goes on where the first one ended.

A file of JSON lines beside the CSV: what the run is of, then a line for each job as it ends. A job
that was cut off, by the budget or with its device, has no line and is taken up again. Imports no
torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAME = "bench-gpu.jobs"
DONE, FAILED = "done", "failed"
DEVICE_LOST = 3  # exit code of a worker whose GPU has become unusable


class Journal:
    """The jobs of one run that have ended, and how."""

    def __init__(self, folder: Path, run: str) -> None:
        """Take the journal of a folder, which need not be there yet."""
        self.path, self.run = folder / NAME, run

    @classmethod
    def begun(cls, folder: Path, facts: Mapping[str, str], run: str) -> Journal:
        """Return the last run of the same facts, or else begin one.

        Args:
            folder: where it is, with the CSV.
            facts: device, code and versions, by name.
            run: what a new one is called.
        """
        for line in cls(folder, run)._lines():
            if line.get("facts") == dict(facts):
                run = line["run"]
        journal = cls(folder, run)
        if not any(line["run"] == run for line in journal._lines()):
            journal._write(facts=dict(facts))
        return journal

    def note(self, job: str, outcome: str) -> None:
        """Write down that a job has ended: DONE, or FAILED if something of it gave no row."""
        self._write(job=job, outcome=outcome)

    def ended(self, again: bool = False) -> set[str]:
        """Return the names of the jobs that need not run: with `again` only those without fault."""
        outcomes = {
            line["job"]: line["outcome"]
            for line in self._lines()
            if line["run"] == self.run and "job" in line
        }
        return {job for job, outcome in outcomes.items() if outcome == DONE or not again}

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "run" in line:
                yield line

    def _write(self, **values: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # A new line first: the last one may have been cut off with its process.
            file.write(f"\n{json.dumps({'run': self.run, **values})}")
