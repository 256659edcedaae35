"""Standard output and error that outlive their readers: a pipe, a terminal, a disk."""

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

READER_GONE = 141  # as a shell says of a program that SIGPIPE has ended
_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENOTCONN)


class Streams:
    """What became of standard output."""

    error: OSError | None = None

    def exit_code(self, code: int) -> int:
        """Return a command's exit code: its own, or what tells that its output was not taken."""
        if code or self.error is None:
            return code
        if self.error.errno in _GONE:
            return READER_GONE
        words = f"standard output cannot be written: {self.error.strerror}"
        print(f"failed: {words}; what goes to files is written", file=sys.stderr)
        return 1


@contextmanager
def lasting_streams() -> Iterator[Streams]:
    """Let the standard streams take everything, even if nobody is left to read it.

    A run of hours does not end because its terminal did. Characters that a stream has no code for
    are written as escapes. A descriptor that is closed becomes the null device, so that no file
    of ours is opened in its place and gets what other libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    streams, before = Streams(), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = _lasting(sys.stdout, streams), _lasting(sys.stderr, Streams())
    try:
        yield streams
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None, streams: Streams) -> TextIO:
    """Return a stream that writes where another one does, and never fails."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    binary = getattr(stream, "buffer", None)
    if not isinstance(getattr(binary, "raw", binary), io.FileIO):
        return stream  # a program's own, such as a notebook's
    file = _Lasting(stream.fileno(), streams)
    try:
        stream.flush()
    except OSError as error:
        file.give_up(error)
    return io.TextIOWrapper(
        file if binary is not None and not hasattr(binary, "raw") else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


class _Lasting(io.FileIO):
    """A descriptor that becomes the null device when it can be written no longer."""

    def __init__(self, descriptor: int, streams: Streams) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._streams = streams

    def write(self, data) -> int:
        """Write all; return the number of bytes."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            try:
                written = super().write(left)
            except OSError as error:
                self.give_up(error)
                break
            if written is None:  # a reader who is slow, and does not block
                select.select([], [self], [])
            left = left[written or 0 :]
        return size

    def give_up(self, error: OSError) -> None:
        """Write to the null device from now on; so does what is no Python."""
        self._streams.error = self._streams.error or error
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
