"""Seconds that tickets and one dense network take to predict, timed in turn in this process."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.config.config import Dtype
from sparse_engine.device import autocast
from sparse_engine.runs.model import plain_model
from sparse_engine.runs.tickets import Ticket
from sparse_kernels.timing import CoreWait, medians_in_turn

ROUNDS = 5


def test_times(tickets: Sequence[Ticket], device: torch.device) -> dict[str, Any]:
    """Return the median seconds of a batch, of all tickets together and of one dense network.

    The batch is of random images, twice as many as in training, as the test split is predicted.

    Args:
        tickets: all of them at once on the device; the first one's model is the dense network's.
        device: where to time; a CPU with torch's present number of threads.

    Returns:
        test_seconds, dense_test_seconds, test_time_ratio, test_batch, images, and test_core_wait,
        of torch's threads meanwhile (see sparse_kernels/timing.py).
    """
    first = tickets[0]
    config, info = first.config, first.info
    x = torch.randn(2 * config.batch_size, info.channels, info.height, info.width, device=device)
    x = x.to(memory_format=torch.channels_last)
    models = [*(ticket.load() for ticket in tickets), plain_model(config, info)]
    calls = [_prediction(model, x, config.dtype) for model in models]
    on_gpu = device.type == "cuda"
    wait = CoreWait(on_gpu)
    *seconds, dense = medians_in_turn(calls, ROUNDS, on_gpu)
    return {
        "test_seconds": sum(seconds),
        "dense_test_seconds": dense,
        "test_time_ratio": sum(seconds) / dense,
        "test_batch": len(x),
        "test_core_wait": wait.share(),
    }


def _prediction(model: nn.Module, x: Tensor, dtype: Dtype) -> Callable[[], None]:
    model = model.to(device=x.device, memory_format=torch.channels_last).eval()
    return partial(_predict, model, x, dtype)


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor, dtype: Dtype) -> None:
    with autocast(x.device, dtype):
        model(x)
