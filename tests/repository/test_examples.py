"""Every example runs, at its smallest, as a user would start it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "own_loop.py": ([], ["SparseConv2d(64, 128", "all else", "accuracy 0."]),
    "fine_tune.py": (["--out", "tuned"], ["sparse accuracy", "loaded dense: accuracy"]),
    "uncertainty.py": ([], ["3 tickets, accuracy", "mutual information", "upside down"]),
}


def test_every_example_is_run():
    assert set(EXAMPLES) == {path.name for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path):
    flags, expected = EXAMPLES[name]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), "--tiny", *flags],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for words in expected:
        assert words in done.stdout
    if name == "fine_tune.py":
        sparse, dense = (tmp_path / "tuned" / f for f in ("sparse.pt", "dense.pt"))
        assert sparse.stat().st_size < 0.3 * dense.stat().st_size
        lines = [line.split()[-1] for line in done.stdout.splitlines() if " accuracy " in line]
        assert lines[-1] == lines[-2]  # what was loaded dense predicts as the sparse one did
