"""The processes of a loader: signals pass them by, and one that is killed is told of."""

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
from image_folders import write_images
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sparse_engine.data import worker_processes
from sparse_engine.data.folder import FolderLoader
from sparse_engine.data.load import load_dataset
from sparse_engine.errors import RunFailure

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Newer Pythons warn of any fork beside threads, which torch's own workers do on Linux.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(number) for number in file.read().split()]


def send(numbers, processes):
    for process in processes:
        for number in numbers:
            os.kill(process, number)


def test_signals_and_kills(tmp_path, monkeypatch):
    for split in ("train", "val"):
        write_images(tmp_path / split, 8)
    data = load_dataset(f"imagefolder:{tmp_path}", None)
    others, handler = children(), signal.getsignal(signal.SIGCHLD)
    loader = FolderLoader(data.train, data.info, 2, "cpu", seed=0, workers=4)
    loader.batch(0)
    own = [process for process in children() if process not in others]
    assert len(own) == 4
    send(SIGNALS, own)
    for step in range(1, 12):
        loader.batch(step)
    # An error that comes wherever the program is would come within the writing of a checkpoint.
    assert signal.getsignal(signal.SIGCHLD) is handler
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    send([signal.SIGKILL], own)
    steps = range(12, 40)
    with pytest.raises(RunFailure, match=r"^a loader process was killed, .*; what was written be"):
        list(map(loader.batch, steps))
    assert [process for process in children() if process not in others] == []


@pytest.mark.parametrize(("seconds", "told"), [(0.3, RunFailure), (60, ConnectionResetError)])
def test_a_process_that_is_still_dying_counts_as_dead(seconds, told, monkeypatch):
    monkeypatch.setattr(worker_processes, "_DYING_SECONDS", 2 if seconds < 1 else 0.1)
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(seconds,))
    process.start()
    try:
        with pytest.raises(told):
            worker_processes._raise_for_the_dead(
                SimpleNamespace(_workers=[process]), ConnectionResetError("reset by peer")
            )
    finally:
        process.kill()
        process.join()


def test_an_error_without_processes_is_told_at_once(monkeypatch):
    monkeypatch.setattr(worker_processes, "wait", lambda *_: pytest.fail("nothing to wait for"))
    with pytest.raises(OSError, match="a damaged picture"):
        worker_processes._raise_for_the_dead(SimpleNamespace(), OSError("a damaged picture"))
