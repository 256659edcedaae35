"""Every example runs, at its smallest, as a user would start it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from client_process import printed

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "own_loop.py": ([], ["SparseConv2d(64, 128", "all else", "accuracy 0."]),
    "fine_tune.py": (["--out", "tuned"], ["sparse accuracy", "loaded dense: accuracy"]),
    "uncertainty.py": ([], ["3 tickets, accuracy", "mutual information", "upside down"]),
    "fsdp2_loop.py": ([], ["SparseLinear", "all else", "loss of this process"]),
    "vit_from_scratch.py": ([], ["mlp.0", "out_proj", "Conv2d (skip)", "accuracy 0."]),
}
# Of other people's trainers, which warn when they are imported: the package that each needs, and a
# checkpoint amid its run.
CLIENTS = {
    "accelerate_loop.py": ("accelerate", "accelerate/epoch-1"),
    "timm_model.py": ("timm", "timm/half.pt"),
    "hugging_face.py": ("transformers", "gpt2/checkpoint-*"),
    "lightning_trainer.py": ("lightning", "lightning/epoch=0.ckpt"),
}
# Their callbacks have quick tests of their own.
QUICK = ("accelerate_loop.py", "timm_model.py")


def test_every_example_is_run():
    assert {*EXAMPLES, *CLIENTS} == {path.name for path in (ROOT / "examples").glob("*.py")}


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


@pytest.mark.parametrize("name", QUICK)
def test_a_clients_example_runs(name, tmp_path):
    pytest.importorskip(CLIENTS[name][0], reason="not installed: extra integration")
    lines = printed(str(ROOT / "examples" / name), "--tiny", folder=tmp_path)
    assert any(line.startswith("total") for line in lines)
    assert lines[-1].startswith("process 0: weights ")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", CLIENTS)
def test_processes_agree_and_a_resumed_run_ends_bit_equal(name, processes, tmp_path):
    package, checkpoint = CLIENTS[name]
    pytest.importorskip(package, reason="not installed: extra integration")
    through = weights_of(name, processes, tmp_path)
    assert len(through) == processes
    assert len(set(through)) == 1
    first = min(tmp_path.glob(checkpoint), key=lambda path: (len(path.name), path.name))
    assert weights_of(name, processes, tmp_path, "--resume", str(first)) == through


def weights_of(name, processes, folder, *flags):
    """Return what each process of an example says of its weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    run = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", port)
    arguments = (*(run if processes > 1 else ()), str(ROOT / "examples" / name), "--tiny", *flags)
    lines = printed(*arguments, folder=folder)
    return [line.split()[-1] for line in lines if line.startswith("process ")]
