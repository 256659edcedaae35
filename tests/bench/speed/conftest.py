"""Captures without a GPU."""

import pytest
import torch
from nodes import marks

from bench.speed.variant import Workload


@pytest.fixture
def captures(monkeypatch):
    """Let a capture be the function itself; return what was captured, and whether with gradients.

    No node of autograd may be left of what came before.
    """
    captured = []

    def record(self, function, *inputs):
        assert marks(self.model) == set()
        captured.append((str(self.variant), torch.is_grad_enabled()))
        self.replay = function

    monkeypatch.setattr(Workload, "record", record)
    return captured
