"""The wheel in an environment with torch alone: README's loop, exported files, what is missing."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from bare_environment import bare_environment, install
from torch import nn
from wheels import build_wheel

from sparse_engine import save_safetensors, sparsify
from sparse_engine.runs.exported import save_torch_export

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAM = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]
READ = """
import torch
from sparse_engine import load_torch_export
images, expected = torch.load("batch.pt")
torch.testing.assert_close(load_torch_export("ticket.pt2")(images), expected)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return what runs Python in an environment of torch and the wheel, without a compiler."""
    folder = tmp_path_factory.mktemp("bare")
    interpreter = bare_environment(folder / "environment")
    install(interpreter, build_wheel(folder))
    empty = folder / "empty"
    empty.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own = {"PATH": str(empty), "SPARSE_ENGINE_CACHE": str(empty), "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        return subprocess.run(
            [interpreter, "-W", "error", *arguments],
            cwd=folder,
            env={**kept, **own},
            capture_output=True,
            text=True,
        )

    return run


def test_the_readmes_loop_runs_masked_where_there_is_no_compiler(python):
    done = python("-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert "SparseConv2d" in done.stdout
    assert "3 topology updated" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("no native kernels, so sparse layers take as long as dense ones: ")


@pytest.mark.parametrize("command", [("train",), ("train", "--dry-run")])
def test_the_trainer_names_its_extra(python, command):
    done = python("-m", f"sparse_engine.{command[0]}", *command[1:])
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    what = "error: training needs tqdm, which is not installed: "
    assert line == f'{what}pip install "sparse-engine[train]"'


def test_an_export_is_read(python, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
    sparsify(model, sparsity=0.8, block=(16, 16))
    images, folder = torch.randn(4, 64), tmp_path
    torch.save((images, model.eval()(images)), folder / "batch.pt")
    save_torch_export(model, folder / "ticket.pt2", images)
    save_safetensors(model, folder / "ticket.safetensors")
    done = python("-c", f"import os; os.chdir({str(folder)!r})\n{READ}")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    code = "import sparse_engine, sys; sparse_engine.load_safetensors(sys.argv[1])"
    done = python("-c", code, str(folder / "ticket.safetensors"))
    assert done.returncode == 1
    remedy = 'needs safetensors, which is not installed: pip install "sparse-engine[train]"'
    assert done.stderr.strip().endswith(remedy)
