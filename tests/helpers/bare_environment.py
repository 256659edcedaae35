"""An environment with torch, NumPy and Triton alone: a new one, with links into this one."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

CORE = ("torch", "numpy", "triton")


def bare_environment(folder: Path) -> Path:
    """Make an environment with CORE and what these require; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in closure(*CORE):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))
    return folder / "bin" / "python"


def install(python: Path, wheel: Path) -> None:
    """Install a wheel without a network: all that it requires must be there."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    done = subprocess.run(
        [*command, "--no-index", "--disable-pip-version-check", str(wheel)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def closure(*names: str) -> set[str]:
    """Return the names of installed distributions and of all that they require."""
    wanted, found = [Requirement(name) for name in names], set()
    seen = set()
    while wanted:
        requirement = wanted.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            others = map(Requirement, distribution(requirement.name).requires or ())
        except PackageNotFoundError:
            continue  # Triton where there is none
        found.add(requirement.name)
        for other in others:
            extras = ("", *requirement.extras)
            if not other.marker or any(other.marker.evaluate({"extra": e}) for e in extras):
                wanted.append(other)
    return found
