"""A long run's memory stays flat: thousands of topology updates, and checkpoints between them."""

import gc
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sparse_engine.train import main
from sparse_engine.training.trainer import Trainer

FLAGS = ["--model", "mlp", "--block", "8x8", "--device", "cpu", "--method", "rigl", "--stop", "1"]


def allocated():
    """Return the bytes that Python has allocated since tracemalloc was started."""
    return tracemalloc.get_traced_memory()[0]


def resident():
    """Return the bytes of this process that are in memory."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def gained(epochs, batch, folder, monkeypatch, *measures):
    """Return the gain by 1,000 updates of some measures, taken after each epoch's checkpoint.

    It is the slope of a line through all but the first third of an update each step.
    """
    save, seen = Trainer._save_checkpoint, []

    def watch(self):
        save(self)
        gc.collect()
        seen.append((self.network.topology.updates, *(measure() for measure in measures)))

    monkeypatch.setattr(Trainer, "_save_checkpoint", watch)
    length = ["--epochs", f"{epochs}", "--batch-size", f"{batch}", "--update-interval", "1"]
    main([*FLAGS, *length, "--out", str(folder / "run")])
    updates, *found = np.array(seen[len(seen) // 3 :]).T
    slopes = [float(np.polyfit(updates, numbers, 1)[0]) * 1000 for numbers in found]
    print(f"{len(seen)} checkpoints, {updates[-1]} updates; gained by 1,000 updates: {slopes}")
    return len(seen), updates[-1], slopes


def test_updates_leave_nothing_allocated(tmp_path, monkeypatch):
    _, updates, (left,) = gained(6, 28, tmp_path, monkeypatch, sys.getallocatedblocks)
    assert updates >= 300
    assert left < 2_000  # two blocks an update; a probe that stays is twenty and more


@pytest.mark.slow
def test_memory_is_flat(tmp_path, monkeypatch):
    tracemalloc.start()
    try:
        checkpoints, updates, slopes = gained(99, 14, tmp_path, monkeypatch, allocated, resident)
    finally:
        tracemalloc.stop()
    assert (checkpoints, updates >= 10_000) == (100, True)
    assert slopes[0] < 5_000
    assert slopes[1] < 200_000
