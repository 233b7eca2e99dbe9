"""Memory that outlives the process: a file mapped into it, which keeps what was stored through a kill.

The files lie on a memory file system (/run): nothing is written to a disk, and a reboot empties them. All their room is
taken at once: a store where the file system finds none any more would kill the process (SIGBUS).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
from pathlib import Path

log = logging.getLogger(__name__)


class MappedFile:
    """A file of a fixed size, mapped shared. A store into words[i] is one instruction: whole, or not there."""

    def __init__(self, path: Path | None, octets: int) -> None:
        """Open, or make with zeros; None is memory that goes with the process.

        A file of another size is of another version, and starts anew. Where there is no room for it, what is in it
        goes on in memory that goes with the process, and that is said. Raises OSError.
        """
        self._mapping = mmap.mmap(-1, octets) if path is None else _mapped(path, octets)
        self.octets = memoryview(self._mapping)
        self.words = self.octets.cast("Q")

    @property
    def address(self) -> int:
        """Where it is mapped, for structures that point into it."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))

    def close(self) -> None:
        """Unmap; the file stays."""
        self.words.release()
        self.octets.release()
        self._mapping.close()


def _mapped(path: Path, octets: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size != octets:
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, octets)
        try:
            os.posix_fallocate(descriptor, 0, octets)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return _without_room(path, os.pread(descriptor, octets, 0))
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that does not know of it
                raise
        return mmap.mmap(descriptor, octets)
    finally:
        os.close(descriptor)


def _without_room(path: Path, content: bytes) -> mmap.mmap:
    """The content in memory of our own. No file stays, so that the next agent does not take old things for new."""
    log.error("%s: no room is left there: at a kill, what is in it is lost", path)
    path.unlink(missing_ok=True)
    mapping = mmap.mmap(-1, len(content))
    mapping[:] = content
    return mapping


class MappedNumber:
    """One number that outlives the process."""

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path, mmap.PAGESIZE)

    @property
    def value(self) -> int:
        return self._file.words[0]

    @value.setter
    def value(self, value: int) -> None:
        self._file.words[0] = value

    def close(self) -> None:
        """Unmap; the file stays."""
        self._file.close()
