"""The processes of a study's runs: a training and an evaluation each, their seconds, their end."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# What a step takes beside a dense one is measured by --time, when nothing else runs.
TRAIN = (sys.executable, "-m", "sparse_engine.train", "--no-compare")
EVALUATE = (sys.executable, "-m", "sparse_engine.evaluate", "--no-compare")


@dataclass
class Processes:
    """Starts processes and waits for them; `threads` is what each may use of a CPU."""

    threads: int
    _children: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, command: Sequence[str], log: Path) -> tuple[int, float, str]:
        """Run a command.

        Args:
            command: a program and its arguments.
            log: file for all that it prints.

        Returns:
            Its exit code, the CPU seconds of all its threads, and its last words.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with log.open("w", encoding="utf-8") as file:
            child = subprocess.Popen(command, stdout=file, stderr=file, text=True, env=environment)
            self._children.append(child)
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            self._children.remove(child)
        code, lines = child.returncode, log.read_text(encoding="utf-8").strip().splitlines()
        words = f"exit {code}, {lines[-1][:300]}" if lines else f"exit {code}"
        return code, used.ru_utime + used.ru_stime, words

    def stop(self) -> None:
        """Ask all that run to stop."""
        for child in list(self._children):
            child.send_signal(signal.SIGTERM)
