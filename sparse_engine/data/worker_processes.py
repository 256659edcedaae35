"""A DataLoader's processes: signals pass them by, and one that dies is told in one line."""

import atexit
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from typing import Any, NoReturn

from torch.utils.data import DataLoader, Dataset

from sparse_engine.errors import RunFailure, first_line

# SLURM, systemd and container runtimes send these to all processes of a group, as a terminal does.
_TO_THE_GROUP = {
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
}
_DYING_SECONDS = 2


def stream(dataset: Dataset, **options: Any) -> Iterator[Any]:
    """Yield the batches of a DataLoader; its processes live as long as their parent wants them.

    They take no notice of a signal to the whole group, which is their parent's to act on, and end
    by themselves when it dies: torch's processes look whether it still lives.

    Args:
        dataset: what is read.
        options: of the DataLoader.

    Raises:
        RunFailure: one of them was killed.
    """
    with _while_they_start():
        loader = DataLoader(dataset, worker_init_fn=_ignore_signals, **options)
        batches = [iter(loader)]
    end = partial(_end, batches)
    atexit.register(end)
    try:
        while True:
            try:
                batch = next(batches[0])
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                _raise_for_the_dead(batches[0], error)
            yield batch
    finally:
        atexit.unregister(end)
        end()


def _raise_for_the_dead(batches: Iterator[Any], error: Exception) -> NoReturn:
    # A process that is killed closes its sockets, which is the error, before it counts as dead.
    sentinels = [worker.sentinel for worker in getattr(batches, "_workers", ())]
    if not sentinels or not wait(sentinels, _DYING_SECONDS):
        raise error
    raise RunFailure(
        f"a loader process was killed, as for want of memory ({first_line(error)}); what was "
        "written before is whole, and a run goes on with --resume, of fewer --workers if need be"
    ) from None


def _end(batches: list[Any]) -> None:
    """Let the processes end, which torch's iterator does when it goes; kill what hangs."""
    workers = [worker for own in batches for worker in getattr(own, "_workers", ())]
    batches.clear()
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _ignore_signals(worker: int) -> None:
    for number in _TO_THE_GROUP:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _while_they_start() -> Iterator[None]:
    """Keep signals from processes that cannot ignore them yet, and torch's handler from this one.

    That handler raises an error wherever the program is when a process dies, within the writing of
    a checkpoint too. Without it the next batch tells, seconds later at most.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_THE_GROUP)
    try:
        with warnings.catch_warnings():
            # How many there are is the user's choice, whatever torch thinks of it.
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
