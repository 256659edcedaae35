"""Kernels a step, as they are now: python -m fake_gpu.limits FILE.json, from the project's folder.

Takes all walks and writes, for each, the kernels of a step, of one that collects dense gradients
and of a topology update, and how many layers ran on what. The tests let no kernels be added and no
layer run on something else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fake_gpu.covering import covering
from fake_gpu.walk import Walk

ROOT = Path(__file__).parents[3]
PARTS = ("step", "armed", "update")
# In every run of the tests: the headline, small channels on Ampere, odd sizes on Blackwell.
FEW = (
    Walk(),
    Walk(80, "wrn10-3", "rows", "uniform", "32x32", "fp16", backend="triton"),
    Walk(120, "wrn10-3", "plain", "uniform", "64x64", "tf32", batch=37, backend="triton"),
)


def taken(walks: Iterable[Walk]) -> list[dict[str, Any]]:
    """Return what walks of one generation have found, taken in a process of their own.

    Raises:
        RuntimeError: it failed; the message holds the end of what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "fake_gpu.walk"],
        input=json.dumps([asdict(walk) for walk in walks]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def environment() -> dict[str, str]:
    """Return the environment of a process with this GPU: the kernels are not interpreted there."""
    paths = [str(ROOT / part) for part in ("kernels", ".", "tests/helpers")]
    usual = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return {**usual, "PYTHONPATH": os.pathsep.join(paths)}


def name(walk: Walk) -> str:
    """Return a walk as one line."""
    return " ".join(map(str, asdict(walk).values()))


def kernels(found: dict[str, Any]) -> list[int]:
    """Return how many kernels each part of a walk ran."""
    return [sum(found[part].values()) for part in PARTS]


def main(arguments: Sequence[str]) -> None:
    """Take all walks and write the file."""
    walks = [*FEW, *covering()]
    limits = {}
    for arch in sorted({walk.arch for walk in walks}):
        for found in taken(walk for walk in walks if walk.arch == arch):
            limits[name(Walk(**found["walk"]))] = [kernels(found), found["layers"]]
            for problem in found["failed"]:
                print(f"{found['walk']}: {problem}", flush=True)
    lines = [f"{json.dumps(walk)}: {json.dumps(known)}" for walk, known in sorted(limits.items())]
    Path(arguments[0]).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
