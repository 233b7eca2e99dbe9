"""Memory that outlives the process: a file mapped into it, which keeps what was stored through a kill.

The files lie on a memory file system (/run): nothing is written to a disk, and a reboot empties them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


class MappedFile:
    """A file of a fixed size, mapped shared. A store into words[i] is one instruction: whole, or not there."""

    def __init__(self, path: Path | None, octets: int) -> None:
        """Open, or make with zeros; None is memory that goes with the process.

        A file of another size is of another version, and starts anew. Raises OSError.
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
        return mmap.mmap(descriptor, octets)
    finally:
        os.close(descriptor)


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
