"""`once` on a GPU that is simulated: a host that launches, and a device that works them off."""

import pytest
import torch

from sparse_kernels import timing

CYCLES_A_SECOND = 1.8e9


class Clocks:
    """Seconds that have passed on the host, and up to when the device has work."""

    def __init__(self, host_seconds: float, device_seconds: float, waits: bool = False) -> None:
        self.host = self.device = 0.0
        self.host_seconds, self.device_seconds, self.waits = host_seconds, device_seconds, waits
        self.sleeps: list[float] = []

    def queue(self, seconds: float) -> None:
        self.device = max(self.host, self.device) + seconds

    def sleep(self, cycles: int) -> None:
        self.sleeps.append(cycles / CYCLES_A_SECOND)
        self.queue(self.sleeps[-1])

    def run(self) -> None:
        self.host += self.host_seconds
        self.queue(self.device_seconds)
        if self.waits:
            self.host = max(self.host, self.device)

    def event(self, enable_timing: bool):
        clocks = self

        class Event:
            at = 0.0

            def record(self) -> None:
                clocks.queue(0.0)
                self.at = clocks.device

            def query(self) -> bool:
                return clocks.host >= self.at

            def synchronize(self) -> None:
                clocks.host = max(clocks.host, self.at)

            def elapsed_time(self, later) -> float:
                return 1e3 * (later.at - self.at)

        return Event()


def measured(monkeypatch, clocks: Clocks) -> float:
    monkeypatch.setattr(torch.cuda, "Event", clocks.event)
    monkeypatch.setattr(torch.cuda, "_sleep", clocks.sleep)
    return timing.once(clocks.run, on_gpu=True)


@pytest.mark.parametrize("host", [1e-5, 6.5e-4, 5e-3, 2e-2])
def test_the_time_is_the_devices_however_long_the_host_takes(host, monkeypatch):
    """0.65 ms is what a pass takes here; the others are a fast host and slower ones."""
    clocks = Clocks(host, device_seconds=4e-5)
    assert measured(monkeypatch, clocks) == pytest.approx(4e-5)
    assert len(clocks.sleeps) == (1 if host < 1e-3 else 2 if host < 1e-2 else 3)


def test_a_call_that_waits_for_the_device_is_tried_a_few_times(monkeypatch):
    clocks = Clocks(1e-4, 1e-4, waits=True)
    assert measured(monkeypatch, clocks) > 0
    assert len(clocks.sleeps) == timing.ATTEMPTS
    assert sum(clocks.sleeps) < 0.5
