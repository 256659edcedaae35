"""The processes of a loader: signals pass them by, and one that is killed is told of."""

import os
import signal

import pytest
from image_folders import write_images
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

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
