"""GPU tests skip, with the reason, where there is no GPU; kernels then run interpreted."""

import os
import shutil
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

if not torch.cuda.is_available():
    # Triton reads this where a kernel is defined; everything else sees the user's environment.
    os.environ["TRITON_INTERPRET"] = "1"
    import sparse_kernels.triton.run_weight_grad_kernels  # noqa: F401 (and with it all that multiply)

    del os.environ["TRITON_INTERPRET"]

    from triton.runtime.interpreter import interpreter_builder

    # Two fifths of the interpreter's time, for what it then discards unless it is debugging.
    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)


@pytest.fixture(autouse=True, scope="session")
def _no_tuned_tiles(tmp_path_factory):
    """Tiles that a user has tuned change no test, and no test changes them.

    Native kernels, which take seconds to compile, are those of the user, who gets new ones.
    """
    from sparse_kernels.cpu.library import FOLDER
    from sparse_kernels.cpu.private_folder import private_folder
    from sparse_kernels.measurements import cache_folder

    compiled = cache_folder() / FOLDER
    place = tmp_path_factory.mktemp("tiles")
    for path in compiled.glob("*.so"):
        (private_folder(place / FOLDER) / path.name).symlink_to(path.absolute())
    os.environ["SPARSE_ENGINE_CACHE"] = str(place)
    yield
    del os.environ["SPARSE_ENGINE_CACHE"]
    with suppress(OSError):
        for path in (place / FOLDER).glob("*.so"):
            if not path.is_symlink():
                shutil.copy(path, private_folder(compiled))


@pytest.fixture(autouse=True, scope="session")
def _no_step_times():
    """Runs do not time their steps against the dense network's: hundreds would."""
    from sparse_engine.training import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "is_comparable", lambda config, processes: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Run steps this small on one thread: several wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def triton_backend(monkeypatch):
    """Run the Triton kernels, in the interpreter where there is no GPU.

    On a GPU fp32 is exact, in the kernels and in what they are compared with: cuDNN has TF32 by
    default, but need not use it. In the interpreter it is exact anyway, and TMA takes TF32 alone.
    """
    monkeypatch.setenv("SPARSE_ENGINE_BACKEND", "triton")
    if torch.cuda.is_available():
        with fp32_precision("ieee"):
            yield
    else:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        yield


@pytest.fixture
def tf32(poisoned_kernels):
    """Let products of fp32 be those of TF32, in the kernels and in what they are compared with."""
    with fp32_precision("tf32"):
        yield


@contextmanager
def fp32_precision(name: str):
    """Compute products of fp32 in "ieee" or "tf32" on a GPU."""
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = name
    yield
    for switch, value in zip(switches, before):
        switch.fp32_precision = value


@pytest.fixture
def poisoned_kernels(triton_backend, monkeypatch):
    """Run the kernels, with outputs that start as NaN, and in the interpreter with small tiles."""
    from kernel_cases import DEVICE, use_small_tiles

    torch.use_deterministic_algorithms(True)  # torch.empty then holds NaN
    if DEVICE == "cpu":
        use_small_tiles(monkeypatch)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def draw_with(monkeypatch):
    """Return what puts a stand-in of Figure where matplotlib is imported from, installed or not."""

    def put(figure):
        for name in ("matplotlib", "matplotlib.figure"):
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        sys.modules["matplotlib.figure"].Figure = figure

    return put


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Work in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Keep what is measured in a folder of the test's own, with `auto` as the backend."""
    from sparse_kernels.dispatch.backend import VARIABLE
    from sparse_kernels.dispatch.cost_model import kept_limits
    from sparse_kernels.measurements import FOLDER

    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    kept_limits.cache_clear()
    yield
    kept_limits.cache_clear()


def pytest_terminal_summary(terminalreporter) -> None:
    """Fail a run in CI that skipped anything but GPU tests: a green line must mean tested."""
    skipped = terminalreporter.stats.get("skipped", [])
    silent = [report.nodeid for report in skipped if "gpu" not in report.keywords]
    if silent and os.environ.get("CI"):
        terminalreporter.write_line(f"skipped without the mark gpu: {', '.join(silent)}", red=True)
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU")
    for item in items:
        if item.get_closest_marker("gpu"):  # among keywords would be a folder's name, too
            item.add_marker(skip)
