"""A file that lines are added to, and that is put aside when it is full."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from scitags_agent.local_path import admit


class LineFile:
    """A file and its predecessors: path, path.1 (the one before), ... up to path.KEEP.

    max_octets   what a file may hold; a line that is longer has a file of its own
    mode, group  of a file when it is made; group -1 leaves that alone

    The file holds whole lines only: what a full disk cut in two is taken back. Somebody else may move or delete it
    at any time (logrotate); the next line then goes to a new one.
    """

    def __init__(self, path: Path, *, max_octets: int, keep: int, mode: int, group: int) -> None:
        self.path = path
        self._max_octets = max_octets
        self._keep = keep
        self._mode = mode
        self._group = group
        self._descriptor = -1
        self._size = 0

    def append(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Add lines, each with its line end: how many are in the file, and what kept out the rest."""
        done = 0
        try:
            self._make_ready()
            while done < len(lines):
                portion = self._fitting(lines, done)
                if portion == 0:
                    self._rotate()
                    self._make_ready()
                    continue
                self._write(b"".join(lines[done : done + portion]))
                done += portion
        except _WrittenInPart as partly:
            return done + partly.lines, partly.cause
        except OSError as error:
            self.close()
            return done, error
        return done, None

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _make_ready(self) -> None:
        """Have the file open that stands at the path now."""
        if self._descriptor >= 0:
            ours = os.fstat(self._descriptor)
            with contextlib.suppress(FileNotFoundError):
                theirs = self.path.stat()
                if (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino):
                    self._size = theirs.st_size  # somebody may have emptied it
                    return
            self.close()
        # O_NONBLOCK is for what is no regular file: opening a pipe would wait for its reader.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        is_new = not self.path.exists()
        self._descriptor = os.open(self.path, flags, self._mode)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(self.path))
        if is_new:
            admit(self.path, self._mode, self._group)
        self._size = status.st_size
        if self._size and os.pread(self._descriptor, 1, self._size - 1) != b"\n":
            # A machine that lost its power left half a line.
            self._write(b"\n")

    def _fitting(self, lines: Sequence[bytes], first: int) -> int:
        """How many lines from the first on still fit; an empty file takes one of any length."""
        size = self._size
        for number in range(first, len(lines)):
            size += len(lines[number])
            if size > self._max_octets and size > len(lines[number]):
                return number - first
        return len(lines) - first

    def _write(self, content: bytes) -> None:
        written = 0
        try:
            while written < len(content):
                written += os.write(self._descriptor, content[written:])
        except OSError as error:
            whole = content.rfind(b"\n", 0, written) + 1
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size + whole)
            self.close()
            raise _WrittenInPart(content.count(b"\n", 0, whole), error) from error
        self._size += written

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep, 0, -1):
            older = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            with contextlib.suppress(FileNotFoundError):
                older.replace(self.path.with_name(f"{self.path.name}.{number}"))
        if not self._keep:
            self.path.unlink(missing_ok=True)


class _WrittenInPart(Exception):
    def __init__(self, lines: int, cause: OSError) -> None:
        super().__init__(cause)
        self.lines = lines
        self.cause = cause
