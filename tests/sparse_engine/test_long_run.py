"""A long run's memory stays flat: thousands of topology updates, and checkpoints between them."""

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sparse_engine.train import main
from sparse_engine.trainer import Trainer

FLAGS = ["--model", "mlp", "--block", "8x8", "--device", "cpu", "--method", "rigl", "--stop", "1"]


def resident():
    """Return the bytes of this process that are in memory."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.parametrize(
    ("epochs", "batch", "traced", "held"),
    [
        # 300 updates in 6 epochs; 10,098 in 99, with a checkpoint before the first.
        (6, 28, 60_000, None),
        pytest.param(99, 14, 5_000, 200_000, marks=pytest.mark.slow),
    ],
)
def test_memory_is_flat(epochs, batch, traced, held, tmp_path, monkeypatch):
    """Bytes gained by 1,000 updates: a line through what each checkpoint after the first third saw.

    Args:
        epochs: one checkpoint each.
        batch: images a step; every step but the last of an epoch's phase updates the topology.
        traced: limit of what Python has allocated.
        held: limit of the process's memory; shorter runs say nothing of it.
    """
    save, seen = Trainer._save_checkpoint, []

    def watch(self):
        save(self)
        gc.collect()
        updates = self.network.topology.updates
        seen.append((updates, tracemalloc.get_traced_memory()[0], resident()))

    monkeypatch.setattr(Trainer, "_save_checkpoint", watch)
    length = ["--epochs", f"{epochs}", "--batch-size", f"{batch}", "--update-interval", "1"]
    tracemalloc.start()
    try:
        main([*FLAGS, *length, "--out", str(tmp_path / "run")])
    finally:
        tracemalloc.stop()
    updates, python, process = np.array(seen[len(seen) // 3 :]).T
    grown = [float(np.polyfit(updates, numbers, 1)[0]) * 1000 for numbers in (python, process)]
    print(f"{len(seen)} checkpoints, {updates[-1]} updates; by 1,000 updates {grown[0]:.0f} bytes")
    print(f"of Python and {grown[1]:.0f} of the process, which held {process[-1]}")
    assert updates[-1] >= 50 * epochs
    assert grown[0] < traced
    assert held is None or grown[1] < held
