"""Which implementation runs: what was asked for, or what `auto` chooses, in compiled code too."""

import platform
from types import SimpleNamespace

import pytest
import torch
from kernel_cases import DEVICE

from sparse_engine.errors import EARLIER_NAMES_GO_IN
from sparse_kernels import BlockLayout, block_conv2d, block_conv2d_fused, block_linear
from sparse_kernels.cpu import library
from sparse_kernels.dispatch import backend
from sparse_kernels.dispatch.backend import VARIABLE, BackendError, check_backend, choose_backend
from sparse_kernels.dispatch.cost_model import break_even_density, native_is_faster
from sparse_kernels.memory_order import in_order
from sparse_kernels.triton import launch

GPU = torch.device("cuda", 0)
HOPPER = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
WIDE = (256, 256, 3, 3, 32, 32)


@pytest.fixture(autouse=True)
def _auto(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    torch.compiler.reset()


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(backend, "_too_old", lambda device: False)
    monkeypatch.setattr(backend, "_generation", lambda device: 90)


def choose_on_gpu(density: float, block=(64, 64)) -> str:
    return choose_backend(GPU, torch.bfloat16, (640, 640, 3, 3, *block), density)


@pytest.mark.parametrize("block", [(32, 32), (64, 64), (128, 64)])
def test_a_layer_above_break_even_runs_dense(block, hopper):
    limit = break_even_density(90, block)
    assert choose_on_gpu(limit, block) == "triton"
    assert choose_on_gpu(limit + 0.01, block) == "masked"


def test_the_kernels_run_at_any_density_where_they_are_asked_for(hopper, monkeypatch):
    monkeypatch.setenv(VARIABLE, "triton")
    assert choose_on_gpu(1.0) == "triton"


def choose_on_cpu(sizes=WIDE, density=0.1, positions=8192, dtype=torch.float32):
    return choose_backend(torch.device("cpu"), dtype, sizes, density, positions)


def test_auto_takes_what_should_be_faster(monkeypatch):
    monkeypatch.setenv(VARIABLE, "auto")
    assert choose_on_cpu() == "native"
    assert choose_on_cpu(density=0.9) == "masked"
    assert choose_on_cpu(sizes=(256, 256, 3, 3, 1, 1)) == "native"
    assert choose_on_cpu(sizes=(256, 256, 3, 3, 1, 1), density=0.6) == "masked"
    assert choose_on_cpu((1024, 1024, 1, 1, 1, 1), 0.3, positions=16) == "masked"
    assert choose_on_cpu(positions=None) == "masked"
    assert choose_on_cpu(dtype=torch.float64) == "masked"
    monkeypatch.setattr(library, "_found", library._Found(None, "no compiler"))
    assert choose_on_cpu() == "masked"
    monkeypatch.undo()
    monkeypatch.setenv(VARIABLE, "native")
    assert choose_on_cpu(dtype=torch.float64) == "masked"
    monkeypatch.setenv(VARIABLE, "masked")
    assert choose_on_cpu() == "masked"


@pytest.mark.parametrize("multiplies_bf16", [True, False])
def test_auto_knows_whether_the_library_multiplies_bf16(multiplies_bf16, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    uncached = native_is_faster.__wrapped__
    narrow = (*WIDE[:4], 8, 8)  # which native kernels multiply in fp32
    assert uncached(torch.bfloat16, narrow, 0.4, 8192, 1) is not multiplies_bf16
    assert uncached(torch.bfloat16, WIDE, 0.4, 8192, 1)
    assert uncached(torch.bfloat16, WIDE, 0.1, 8192, 1)


def test_auto_follows_the_number_of_threads(monkeypatch):
    monkeypatch.setenv(VARIABLE, "auto")
    small = {"sizes": (512, 512, 1, 1, 1, 1), "positions": 256}
    assert choose_on_cpu(**small) == "native"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)
        assert choose_on_cpu(**small) == "masked"
    finally:
        torch.set_num_threads(before)


def test_only_a_cpu_has_it():
    with pytest.raises(BackendError, match="backend 'native' runs on a CPU, found device 'cuda'"):
        check_backend("native", torch.device("cuda"))


def test_without_a_compiler_it_cannot_be_asked_for(monkeypatch):
    monkeypatch.setattr(library, "_found", library._Found(None, "there is no compiler"))
    with pytest.raises(BackendError, match="cannot run here, there is no compiler; use --backend"):
        check_backend("native", torch.device("cpu"))


def test_its_earlier_name_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(backend, "_SAID", set())
    monkeypatch.setenv(VARIABLE, "gemm")
    assert [choose_on_cpu(), choose_on_cpu()] == ["native"] * 2
    told = f"backend 'gemm' is called 'native' now; the earlier name goes in {EARLIER_NAMES_GO_IN}"
    assert [r.message for r in caplog.records] == [told]


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
def test_a_layer_on_a_cpu_that_may_run_native(function, order):
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


def linear() -> torch.Tensor:
    layout = BlockLayout((40, 20), (32, 16), torch.arange(3))
    return block_linear(torch.ones(2, 20), torch.ones(3, 16, 32), layout)


def convolution() -> torch.Tensor:
    layout = BlockLayout((40, 20, 3, 3), (32, 16), torch.arange(3))
    return block_conv2d(torch.ones(2, 20, 6, 6), torch.ones(3, 16, 32), layout)


@pytest.mark.parametrize("call", [convolution, linear])
@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("tritn", "backend 'tritn' is unknown; choose from auto, triton, native, masked"),
        ("triton", "'triton' needs a CUDA GPU, found device 'cpu'; use --backend auto or masked"),
    ],
)
def test_a_backend_that_cannot_run(monkeypatch, call, backend, message):
    monkeypatch.setenv(VARIABLE, backend)
    with pytest.raises(BackendError, match=message):
        call()


@pytest.mark.parametrize("backend", ["auto", "masked", "native"])
def test_a_backend_that_runs_on_every_cpu(monkeypatch, backend):
    wanted = linear()
    monkeypatch.setenv(VARIABLE, backend)
    torch.testing.assert_close(linear(), wanted)


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize(
    ("block", "dtype", "message"),
    [
        ((8, 8), torch.float32, r"no kernel for block \(8, 8\)"),
        ((16, 16), torch.float64, "no kernel for torch.float64"),
    ],
)
def test_what_no_kernel_covers_is_an_error_on_demand_only(block, dtype, message, monkeypatch):
    layout = BlockLayout((16, 16), block, torch.arange(1)).to(DEVICE)
    values = torch.ones(1, block[1], block[0], dtype=dtype, device=DEVICE)
    x = torch.ones(2, 16, dtype=dtype, device=DEVICE)
    with pytest.raises(BackendError, match=message):
        block_linear(x, values, layout)
    monkeypatch.setenv(VARIABLE, "auto")
    assert block_linear(x, values, layout).sum() == 2 * block[0] * block[1]
