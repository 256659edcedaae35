"""What only a GPU can show: graphs, streams, synchronisation, addresses beyond 32 bits, leaks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_kernels import BlockLayout, block_conv2d, block_linear
from sparse_kernels.layout import block_grid
from sparse_kernels.memory_order import in_order

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _triton(triton_backend):
    """Run the kernels at any density, above break-even too."""


def make(order: str = "rows", batch: int = 128, dtype: torch.dtype = torch.bfloat16):
    """Return x, values and layout of a 64 -> 64 convolution with 64x32 blocks, a third of them."""
    torch.manual_seed(0)
    shape, block = (64, 64, 3, 3), (64, 32)
    total = torch.tensor(block_grid(shape, block)).prod()
    layout = BlockLayout(shape, block, torch.randperm(int(total))[: int(total) // 3]).to("cuda")
    x = in_order(torch.randn(batch, 64, 8, 8, device="cuda", dtype=dtype), order)
    values = torch.randn(layout.slots, 32, 64, device="cuda", dtype=dtype)
    return x.requires_grad_(), values.requires_grad_(), layout


def other_blocks(layout: BlockLayout) -> torch.Tensor:
    """Return ids of other blocks, as many, without waiting for the device."""
    return (layout.block_ids + 1) % layout.total


@pytest.mark.parametrize("order", ["rows", "channels_last"])
def test_a_graph_stays_right_after_a_topology_update(order):
    x, values, layout = make(order)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            y = block_conv2d(x, values, layout, padding=1)
            torch.autograd.grad(y, (x, values), torch.ones_like(y))
    torch.cuda.current_stream().wait_stream(stream)
    # Its graph holds nodes of the leaves that belong to the other stream.
    del y
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = block_conv2d(x, values, layout, padding=1)
        gradients = torch.autograd.grad(y, (x, values), torch.ones_like(y))
    for _ in range(2):
        graph.replay()
        right = block_conv2d(x, values, layout, padding=1)
        torch.testing.assert_close(y, right, rtol=0, atol=0)
        expected = torch.autograd.grad(right, (x, values), torch.ones_like(right))
        for found, wanted in zip(gradients, expected):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        layout.update_(other_blocks(layout))


@pytest.mark.parametrize("order", ["rows", "channels_last", "contiguous"])
def test_nothing_waits_for_the_device(order):
    x, values, layout = make(order)
    block_conv2d(x, values, layout, padding=1).sum().backward()  # compiles, and that may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = block_conv2d(x, values, layout, padding=1)
        y.backward(torch.ones_like(y))
        layout.update_(other_blocks(layout))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_topology_update_does_not_wait_for_the_device():
    from sparse_engine import SparseConv2d
    from sparse_engine.sparsity.topology import Topology

    layers = [SparseConv2d(64, 64, 3, padding=1, density=0.3) for _ in range(2)]
    model = torch.nn.Sequential(*layers).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology = Topology(model, optimizer, "rigl")
    x = torch.randn(8, 64, 8, 8, device="cuda")
    for mode in ("default", "error"):
        topology.arm()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            y = model(x)
            y.backward(torch.ones_like(y))
            optimizer.step()
            topology.update(0.3)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_another_stream_gives_the_same():
    x, values, layout = make()
    expected = block_conv2d(x, values, layout, padding=1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        found = block_conv2d(x, values, layout, padding=1)
    stream.synchronize()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [2**25 + 128, 2**25 + 3])
def test_more_elements_than_32_bits_count(rows):
    layout = BlockLayout((64, 64), (64, 64), torch.arange(1)).to("cuda")
    values = torch.eye(64, device="cuda", dtype=torch.bfloat16)[None]
    x = torch.zeros(rows, 64, device="cuda", dtype=torch.bfloat16)  # 64 * 2^25 = 2^31 elements
    x[-1], x[0] = 3, 2
    y = block_linear(x, values, layout)
    assert y[-1].eq(3).all()
    assert y[0].eq(2).all()
    assert not y[1:-1].any()


def test_ten_thousand_updates_take_no_memory():
    _, _, layout = make()
    layout.update_(other_blocks(layout))
    before = torch.cuda.memory_allocated()
    for _ in range(10_000):
        layout.update_(other_blocks(layout))
    assert torch.cuda.memory_allocated() == before
    layout.validate(layout.block_ids)


def test_repeated_runs_are_equal_bit_for_bit():
    x, values, layout = make()
    runs = []
    for _ in range(3):
        y = block_conv2d(x, values, layout, padding=1)
        runs.append((y, *torch.autograd.grad(y, (x, values), torch.ones_like(y))))
    for run in runs[1:]:
        for found, expected in zip(run, runs[0]):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_small_cases_read_and_write_inside_their_tensors():
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed")
    cases = str(Path(__file__).parent / "triton" / "test_gather.py")
    chosen = "test_convolution and (ragged or odd or tma or unused)"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", "pytest"]
    # PyTorch's caching allocator would hide reads past the end of a tensor in its pools.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [*command, "-q", "-x", cases, "-k", chosen],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_the_tuner_finds_right_tiles(tmp_path, monkeypatch):
    from sparse_kernels import tuner
    from sparse_kernels.measurements import FOLDER
    from sparse_kernels.triton.tile_choice import tuned_tiles

    monkeypatch.setenv(FOLDER, str(tmp_path))
    tuned_tiles.cache_clear()
    try:
        x, values, layout = make()
        expected = block_conv2d(x, values, layout, padding=1)
        x, values = x.detach(), values.detach()
        tuner.tune_conv2d(x, values, layout, (1, 1), (1, 1), (1, 1))
        found = block_conv2d(x, values, layout, padding=1)
        torch.testing.assert_close(found, expected.detach())
    finally:
        tuned_tiles.cache_clear()


def test_tuning_inside_a_captured_graph_is_refused():
    from sparse_kernels import tuner

    x, values, layout = make()
    refused = pytest.raises(RuntimeError, match="while a CUDA graph is captured")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        layout.mask()  # an empty graph is warned of
        tuner.tune_conv2d(x, values, layout, (1, 1), (1, 1), (1, 1))


def test_a_fused_step_is_tuned_in_backward_too(tmp_path, monkeypatch):
    """Autograd runs the backward of a GPU in a thread of its own, which the tuner must see."""
    from sparse_engine import SparseConv2d, fuse, to_rows
    from sparse_engine.models.wide_resnet import PreActivationBlock
    from sparse_engine.training.times.tuning import tune
    from sparse_kernels import tuner
    from sparse_kernels.measurements import FOLDER
    from sparse_kernels.triton.tile_choice import tuned_tiles
    from sparse_kernels.triton.tiles import Tile

    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(tuner, "candidate_tiles", lambda _: [Tile(64, 32, 4, 3)])
    monkeypatch.setattr(tuner, "NOTICEABLE", 1e9)  # whatever is right is taken
    tuned_tiles.cache_clear()
    try:
        block = PreActivationBlock(32, 32, 1, 0.0)
        for name in ("conv1", "conv2"):
            layer = SparseConv2d(32, 32, 3, padding=1, bias=False, density=0.4)
            setattr(block, name, layer)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 1), block)
        model = fuse(to_rows(model.cuda()))
        found = tune(model, torch.randn(128, 3, 8, 8, device="cuda"), torch.bfloat16)
        assert {key.split(" bfloat16")[0] for key in found} == {
            "forward",
            "input gradient",
            "weight gradient",
        }
        assert not any(key.endswith("plain") for key in found if key.startswith("weight"))
    finally:
        tuned_tiles.cache_clear()
