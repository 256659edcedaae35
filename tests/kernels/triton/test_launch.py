"""Every kernel starts on the device of its tensors."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import sparse_kernels
from sparse_kernels.triton.launch import launch


def launches(source: str) -> list[int]:
    """Return the lines of a text that call something subscripted, as kernel[grid](...) does."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Subscript)]


def test_only_launch_starts_kernels():
    assert launches("kernel[grid](x)\nfound[0]\nprint(x)") == [1]
    files = Path(sparse_kernels.__file__).parent.rglob("*.py")
    found = {path.name: launches(path.read_text(encoding="utf-8")) for path in files}
    assert {name: len(lines) for name, lines in found.items() if lines} == {"launch.py": 2}


class Elsewhere:
    """Stands for a tensor on some device."""

    def __init__(self, device: int) -> None:
        self.device = device

    def get_device(self) -> int:
        return self.device


@pytest.mark.parametrize("device", [-1, 0, 1])
def test_a_kernel_starts_on_the_device_of_its_tensor(device, monkeypatch):
    current, seen = [0], []

    @contextmanager
    def on(chosen):
        current[0], before = chosen, current[0]
        yield
        current[0] = before

    class Kernel:
        def __getitem__(self, grid):
            return lambda **arguments: seen.append((current[0], arguments))

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", on)
    launch(Elsewhere(device), Kernel(), (1,), x=2, bias=None, BM=3)
    assert seen == [(max(device, 0), {"x": 2, "bias": None, "BM": 3})]
    assert current == [0]
