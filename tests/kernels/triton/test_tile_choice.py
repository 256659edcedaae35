"""Compiled code chooses backends without a warning, which here is an error, in a single graph."""

from types import SimpleNamespace

import pytest
import torch

from sparse_kernels import BlockLayout, block_conv2d, block_conv2d_fused
from sparse_kernels.dispatch.backend import VARIABLE, choose_backend
from sparse_kernels.memory_order import in_order
from sparse_kernels.triton import launch

HOPPER = SimpleNamespace(major=9, minor=0, multi_processor_count=132)


@pytest.fixture(autouse=True)
def _auto(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    torch.compiler.reset()


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_choice_for_a_gpu(seen_before, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: HOPPER)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(launch, "_FACTS", {gpu: (90, 132)} if seen_before else {})

    def chosen(x: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
        sizes = [(64, 64, 3, 3, 32, 32), (64, 64, 3, 3, 32, 32), (64, 64, 3, 3, 1, 1)]
        densities = (0.1, 0.9, 0.1)
        found = [choose_backend(gpu, x.dtype, s, d) for s, d in zip(sizes, densities)]
        return x + 1, found

    compiled = torch.compile(chosen, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1))[1] == ["triton", "masked", "masked"]


@pytest.mark.parametrize("order", ["rows", "channels_last"])
@pytest.mark.parametrize("function", [block_conv2d, block_conv2d_fused])
def test_a_layer_on_a_cpu_that_may_run_gemm(function, order):
    torch.manual_seed(0)
    layout = BlockLayout((32, 32, 3, 3), (16, 16), torch.arange(4))
    values = torch.randn(4, 16, 16)
    x = in_order(torch.randn(3, 32, 6, 5), order)
    eager, found = (
        run(x, values, layout, padding=1)
        for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager"))
    )
    if function is block_conv2d_fused:
        eager, found = eager.y, found.y
    torch.testing.assert_close(found, eager, rtol=1e-4, atol=1e-4)
    assert found.stride() == eager.stride()
