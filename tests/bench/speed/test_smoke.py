"""The smoke test runs what a device has, and finds what is wrong, fused or not."""

import pytest

from bench.speed import machine, smoke
from sparse_engine.errors import InputError, RunFailure
from sparse_kernels.operators import fused_convolution
from sparse_kernels.triton import gather


def spoil(monkeypatch, module, launcher, spoiled):
    """Let a launcher write a wrong result: `spoiled` finds it in its arguments."""
    real = getattr(module, launcher)

    def wrong(*arguments, **named):
        found = real(*arguments, **named)
        spoiled(found, arguments).mul_(1.05)
        return found

    monkeypatch.setattr(module, launcher, wrong)


@pytest.mark.usefixtures("triton_backend")
def test_the_kernels_in_the_interpreter(monkeypatch, capsys):
    """With the variant that moves tiles by TMA, which is what a GPU would run."""
    launched = []
    real = gather._gather_tma
    monkeypatch.setattr(gather, "_gather_tma", lambda *a: launched.append(a) or real(*a))
    smoke.smoke("cpu", tiny=True)
    assert "triton: 19 of 19 results right" in capsys.readouterr().out
    assert len(launched) >= 4


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize(
    ("module", "launcher", "spoiled", "found"),
    [
        (gather, "_gather_tma", lambda _, arguments: arguments[0].dst, "rows fused output 5.0e-02"),
        (
            fused_convolution,
            "strip_shares",
            lambda found, _: found,
            "fused values gradient 5.0e-02",
        ),
        (
            fused_convolution,
            "norm_backward",
            lambda found, _: found[2],
            "fused norm weight gradient 5.0e-02",
        ),
    ],
    ids=["gather", "weight gradient", "norm"],
)
def test_a_wrong_launcher_is_found(module, launcher, spoiled, found, monkeypatch, capsys):
    monkeypatch.setattr(smoke, "TINY", smoke.TINY[1:2])
    spoil(monkeypatch, module, launcher, spoiled)
    with pytest.raises(RunFailure, match=found):
        smoke.smoke("cpu", tiny=True)
    assert "of 8 results right" in capsys.readouterr().out


@pytest.mark.usefixtures("triton_backend")
def test_a_kernel_that_cannot_be_compiled_costs_its_own_result(monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError("at 12:4: unsupported\nmore")

    monkeypatch.setattr(smoke, "TINY", smoke.TINY[:2])
    monkeypatch.setattr(smoke, "_fused", refuse)
    with pytest.raises(RunFailure, match=r"fused cannot run: RuntimeError: at 12:4: unsup"):
        smoke.smoke("cpu", tiny=True)
    assert "triton: 3 of 4 results right" in capsys.readouterr().out


def test_a_cpu_checks_what_it_has(capsys):
    smoke.main(["--tiny"])
    assert capsys.readouterr().out.startswith("native: 19 of 19 results right")


def test_a_gpu_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(smoke.torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="no C compiler: Triton needs one"):
        smoke.main([])


def test_the_checks_of_a_gpu():
    fused_convolution = {check.block: check for check in smoke.CHECKS if check.fused}
    assert {(64, 64), (32, 32)} <= set(fused_convolution)
    for check in fused_convolution.values():
        assert (check.layer.batch, check.order) == (128, "rows")


def test_a_wrong_plain_pass_is_found(monkeypatch, capsys):
    monkeypatch.setattr(smoke, "CHECKS", smoke.CHECKS[-1:])
    smoke.smoke("cpu")
    assert "native: 3 of 3 results right" in capsys.readouterr().out
    real = smoke.sparse_passes

    def wrong(*arguments):
        passes = real(*arguments)
        return {**passes, "input gradient": lambda: passes["input gradient"]().zero_()}

    monkeypatch.setattr(smoke, "sparse_passes", wrong)
    with pytest.raises(RunFailure, match="input gradient"):
        smoke.smoke("cpu")
