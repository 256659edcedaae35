"""Blocks begin anew in the optimizers of timm, transformers, schedulefree and accelerate."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"
ROOT = Path(__file__).parents[2]
# Some of each package: its state tensors that have slots.
EXPECTED = {
    "timm": {"adamw": 2, "lamb": 2, "lion": 1, "adan": 4, "madgrad": 3, "rmsproptf": 2}
    | {"adafactorbv": 2, "kron": 1, "novograd": 1, "muon": 1, "lookahead_adam": 3},
    "transformers": {"Adafactor": 2, "Adafactor with momentum": 3},
    "schedulefree": {"SGDScheduleFree": 1, "AdamWScheduleFree": 2, "wrapper": 2},
    "accelerate": {"Rprop": 2},
}


@pytest.fixture(scope="module")
def results():
    paths = [*(str(path) for path in (ROOT / "kernels", ROOT, HELPERS)), *sys.path]
    # timm's kron is compiled, which takes longer than all else.
    own = {"PYTHONPATH": os.pathsep.join(paths), "TORCHDYNAMO_DISABLE": "1"}
    environment = {**os.environ, **own}
    command = [sys.executable, "-W", "ignore", HELPERS / "client_optimizers.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run(command, env=environment, timeout=600, **pipes)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", EXPECTED)
def test_every_optimizer_of(package, results):
    if not importlib.util.find_spec(package):
        pytest.skip(f"needs {package}")
    assert "failed" not in results, results
    lines = [line.partition(" ")[2] for line in results.splitlines() if line.startswith(package)]
    found = {name: int(tensors) for name, _, tensors in (line.rpartition(" ") for line in lines)}
    assert {name: found[name] for name in EXPECTED[package]} == EXPECTED[package]
