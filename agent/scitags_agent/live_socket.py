"""The socket of a connection, while the program that it belongs to uses it.

A duplicate of its descriptor is taken from the process that holds it (pidfd_getfd(2), Linux 5.6; needs CAP_SYS_PTRACE,
or to be the same user). It is to be closed again at once: the connection stays open as long as anybody has one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

_SYS_PIDFD_GETFD = 438  # the same on every architecture
_PREFIX = "socket:["
_PROCESSES_REMEMBERED = 64


class LiveSockets:
    """Finds who holds sockets. Processes that held one are asked first: a storage is few processes."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._holders: OrderedDict[int, None] = OrderedDict()
        self._found: dict[int, tuple[int, int]] = {}
        self._seen_all = False

    def begin(self) -> None:
        """Forget what was found: sockets come and go. To be called before each few questions in a row."""
        self._found.clear()
        self._seen_all = False
        self._look_at(tuple(self._holders))

    def take(self, inode: int) -> int:
        """A descriptor of ours for the socket with this inode.

        Raises ProcessLookupError when no process has it, or its holder cannot be seen; PermissionError when the
        right to take it is missing; OSError (ENOSYS) when the kernel cannot.
        """
        if inode not in self._found and not self._seen_all:
            self._seen_all = True
            self._look_at(int(one.name) for one in self._proc.iterdir() if one.name.isdigit())
        if inode not in self._found:
            raise ProcessLookupError(f"no process is seen that holds socket {inode}")
        process, descriptor = self._found[inode]
        self._holders[process] = None
        self._holders.move_to_end(process)
        if len(self._holders) > _PROCESSES_REMEMBERED:
            self._holders.popitem(last=False)
        return self._duplicate(process, descriptor)

    def _look_at(self, processes: Iterable[int]) -> None:
        for process in processes:
            try:
                with os.scandir(self._proc / str(process) / "fd") as descriptors:
                    for one in descriptors:
                        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                            target = os.readlink(one.path)  # noqa: PTH115  # there are thousands
                            if target.startswith(_PREFIX):
                                self._found[int(target[len(_PREFIX) : -1])] = process, int(one.name)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                self._holders.pop(process, None)

    def _duplicate(self, process: int, descriptor: int) -> int:
        there = os.pidfd_open(process)
        try:
            taken = self._libc.syscall(ctypes.c_long(_SYS_PIDFD_GETFD), there, descriptor, 0)
            if taken < 0:
                code = ctypes.get_errno()
                if code == errno.EBADF:
                    raise ProcessLookupError(code, f"process {process} has closed it meanwhile")
                raise OSError(code, f"pidfd_getfd: {os.strerror(code)}")
            return int(taken)
        finally:
            os.close(there)
