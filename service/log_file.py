"""A log file that several processes write: each line whole, and put aside once when it has grown too large.

The workers' and the receivers' processes have one file together. The standard library's rotating handler is for one: of
three, each would rename the file in its turn, and the second one would put its few lines in the place of all that was kept.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress

MODE = 0o600  # as service/children.py opens it


class LogFile(logging.Handler):
    """Appends to `path`; at `bytes_max` that becomes `.1`, in place of the one before."""

    def __init__(self, path: str, bytes_max: int) -> None:
        super().__init__()
        self._path, self._bytes_max = path, bytes_max
        self._fd = self._open()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
            self._keep_current(len(line))
            os.write(self._fd, line)  # one call with O_APPEND: no other process's line comes in between
        except Exception:  # noqa: BLE001 - as every handler: what cannot be logged is told to stderr, and ends nobody
            self.handleError(record)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, MODE)

    def _keep_current(self, more: int) -> None:
        with suppress(FileNotFoundError):
            there = os.stat(self._path)
            if os.path.samestat(there, os.fstat(self._fd)):
                if not self._too_large(there, more):
                    return
                self._put_aside(more)
        # Put aside by us or by another process: from here on it is the new one.
        new = self._open()
        os.close(self._fd)
        self._fd = new

    def _too_large(self, there: os.stat_result, more: int) -> bool:
        return there.st_size > 0 and there.st_size + more > self._bytes_max

    def _put_aside(self, more: int) -> None:
        # A descriptor of its own: a lock on the one that was inherited keeps out nobody who inherited it too.
        fd = os.open(self._path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.fstat(fd)
            if os.path.samestat(there, os.stat(self._path)) and self._too_large(there, more):
                os.replace(self._path, f"{self._path}.1")
        except BlockingIOError:
            pass  # another one is at it: this line still goes where the last one went
        finally:
            os.close(fd)
