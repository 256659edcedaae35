"""--deterministic: two runs of one command are equal bit for bit."""

import pytest
import torch
from resumed_runs import assert_equal_runs, train

from sparse_engine.device import repeatable
from sparse_engine.errors import RunFailure


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "as before")


def settings():
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "edst", "--members", "2", "--epochs", "3", "--dropout", "0.1"],
        ["--method", "rigl", "--model", "wrn10-1", "--epochs", "1", "--block", "16x16"],
    ],
)
def test_the_same_command_gives_the_same_bits(flags, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in ("first", "second"):
            torch.manual_seed(threads)  # what others have drawn changes nothing
            train(name, *flags, "--deterministic")
            torch.rand(3)
    finally:
        torch.set_num_threads(before)
    assert_equal_runs("first", "second")


def test_another_seed_gives_another_run():
    for seed in ("0", "1"):
        train(f"seed-{seed}", "--method", "static", "--epochs", "1", "--seed", seed)
    with pytest.raises(AssertionError):
        assert_equal_runs("seed-0", "seed-1")


def test_algorithms_are_chosen_while_it_is_entered():
    before = settings()
    with repeatable(True):
        assert settings() == (True, True, False)
    assert settings() == before
    with repeatable(False):
        assert settings() == (False, False, True)
    assert settings() == before


def test_what_cannot_be_repeated_is_told():
    message = r"^backward_x does not have a deterministic implementation, but you set this; leave"
    with pytest.raises(RunFailure, match=message), repeatable(True):
        raise RuntimeError(
            "backward_x does not have a deterministic implementation, but you set this. You can"
        )
    with pytest.raises(RuntimeError, match="another"), repeatable(True):
        raise RuntimeError("another")
    assert not settings()[0]
