"""The GPU that is not there sees what the walks are to find; in a process of its own."""

import json
import subprocess
import sys

import pytest
from fake_gpu.limits import environment

PROGRAM = """
import json
import fake_gpu

gpu = fake_gpu.install(90)
import torch
from sparse_kernels import BlockLayout, block_linear

tape, found = gpu.tape, {}
x = torch.zeros(64, device="cuda")
index = torch.arange(4, device="cuda")


def noted(name, run):
    with tape.section():
        try:
            run()
        except RuntimeError as error:
            found[name + " raised"] = str(error)
        found[name] = [len(tape.waits), len(tape.copies), sum(tape.kernels.values())]


noted("nothing", lambda: (x.view(8, 8).t(), torch.empty(3, device="cuda")))
noted("one kernel", lambda: x + 1)
noted("filled", lambda: x.index_fill_(0, index, 1))
noted("assigned", lambda: x.__setitem__(index, 1))
noted("read", lambda: float(x.sum()))
noted("sent", lambda: torch.ones(3).to("cuda"))
noted("fetched", lambda: x.cpu())

w = torch.ones(8, 8, device="cuda", requires_grad=True)
with torch.autocast("cuda", torch.bfloat16):
    y = torch.nn.functional.linear(x[:8], w)
y.float().sum().backward()
found["types"] = [str(y.dtype), str(w.grad.dtype), str(w.grad.device)]

layout = BlockLayout((64, 64), (64, 64), torch.arange(1)).to("cuda")
values = torch.ones(1, 64, 64, device="cuda")
import os
os.environ["SPARSE_ENGINE_BACKEND"] = "triton"
noted("ours", lambda: block_linear(x[None], values, layout))
fake_gpu.cuda.State.device = 1
from sparse_kernels.triton import gather_kernels
noted("other device", lambda: gather_kernels.gather_pointers[(1,)](x))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("what", "waits", "copies", "kernels"),
    [
        ("nothing", 0, 0, 0),
        ("one kernel", 0, 0, 1),
        ("filled", 0, 0, 1),
        ("assigned", 0, 1, 1),
        ("read", 1, 0, 1),
        ("sent", 0, 1, 1),
        ("fetched", 1, 0, 0),
        ("ours", 0, 0, 1),
    ],
)
def test_what_the_tape_notes(what, waits, copies, kernels, found):
    assert found[what] == [waits, copies, kernels]


def test_a_tensor_of_another_device_is_refused(found):
    assert "on device 1 with a tensor on cuda:0" in found["other device raised"]


def test_autocast_and_autograd_know_the_device(found):
    assert found["types"] == ["torch.bfloat16", "torch.float32", "cuda:0"]
