"""Stand-ins for torch.cuda: one device, streams, events, graphs, memory."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

# Name, processors and memory of a device of each generation.
DEVICES = {
    80: ("NVIDIA A100-SXM4-80GB", 108, 80),
    89: ("NVIDIA L40S", 142, 48),
    90: ("NVIDIA H100 80GB HBM3", 132, 80),
    100: ("NVIDIA B200", 148, 180),
    120: ("NVIDIA GeForce RTX 5090", 170, 32),
}
MILLISECONDS = 1000.0  # between any two events: few rounds are then enough


class State:
    """Which device is current, and whether a graph is captured."""

    device = 0
    capturing = False


class Stream:
    """A stream on which nothing waits."""

    cuda_stream = stream_id = device_index = 0
    device_type = 1

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def query(self) -> bool:
        return True


class Event(Stream):
    """A moment; any two are as far apart."""

    def record(self, *_: Any) -> None: ...

    def elapsed_time(self, _: Any) -> float:
        return MILLISECONDS

    def query(self) -> bool:
        return False


class CUDAGraph:
    """A graph whose replay does nothing."""

    def replay(self) -> None: ...

    def reset(self) -> None: ...

    def capture_begin(self, *_: Any, **__: Any) -> None:
        State.capturing = True

    def capture_end(self) -> None:
        State.capturing = False

    def pool(self) -> Any:
        return (0, 0)


@contextmanager
def graph(cuda_graph: CUDAGraph, *_: Any, **__: Any):
    """Capture: what is inside runs once, and may not wait for the device."""
    cuda_graph.capture_begin()
    try:
        yield
    finally:
        cuda_graph.capture_end()


@contextmanager
def _stream(_: Any):
    yield


@contextmanager
def _device(device: Any):
    before, State.device = State.device, torch.device(device).index or 0
    try:
        yield
    finally:
        State.device = before


def install_cuda(arch: int) -> None:
    """Replace what the project calls of torch.cuda."""
    name, processors, gigabytes = DEVICES[arch]
    major, minor = divmod(arch, 10)
    properties = SimpleNamespace(
        name=name,
        major=major,
        minor=minor,
        multi_processor_count=processors,
        total_memory=gigabytes * 10**9,
        L2_cache_size=50 * 2**20,
    )

    def nothing(*_: Any, **__: Any) -> None: ...

    constant = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "get_device_name": name,
        "get_device_capability": (major, minor),
        "get_device_properties": properties,
        "is_bf16_supported": True,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        "mem_get_info": (gigabytes * 10**9,) * 2,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    }
    for function, value in constant.items():
        setattr(torch.cuda, function, lambda *_, value=value, **__: value)
    for function in (
        *("_lazy_init", "init", "synchronize", "empty_cache", "reset_peak_memory_stats", "_sleep"),
        *("manual_seed", "manual_seed_all", "set_rng_state", "set_sync_debug_mode", "set_device"),
        *("set_stream",),
    ):
        setattr(torch.cuda, function, nothing)
    torch.cuda.current_device = lambda: State.device
    torch.cuda.is_current_stream_capturing = lambda: State.capturing
    torch.cuda.current_stream = torch.cuda.default_stream = lambda *_: Stream()
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.CUDAGraph, torch.cuda.graph = CUDAGraph, graph
    torch.cuda.stream, torch.cuda.device = _stream, _device
    generator = torch.Generator

    class OnTheHost(generator):
        """A generator of the host, whatever device it is asked for."""

        def __new__(cls, *_: Any, **__: Any) -> Any:
            return generator()

    torch.Generator = OnTheHost
