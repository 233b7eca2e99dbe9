"""Which programs hold a socket: /proc, asked by the socket's inode."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection
from pathlib import Path

log = logging.getLogger(__name__)

ANOTHER = frozenset({""})
NOT_KNOWN: frozenset[str] = frozenset()
_PREFIX = "socket:["


class SocketHolders:
    """One look through /proc, taken when it is first asked for; for a few questions in a row.

    Only the descriptors of processes with one of the names are read: all others of a host would take ten times as long.
    """

    def __init__(self, names: Collection[str], proc: Path = Path("/proc")) -> None:
        """names are as in /proc/PID/comm: at most 15 characters."""
        self._names = names
        self._proc = proc
        self._found: dict[int, set[str]] | None = None
        self._is_complete = True

    def of(self, inode: int) -> Collection[str]:
        """Those of the names that hold the socket; ANOTHER when none does, NOT_KNOWN when that cannot be said."""
        if not inode:
            return NOT_KNOWN
        if self._found is None:
            self._found = {}
            for process in self._proc.iterdir():
                if process.name.isdigit():
                    self._look(process, self._found)
        return self._found.get(inode) or (ANOTHER if self._is_complete else NOT_KNOWN)

    def _look(self, process: Path, found: dict[int, set[str]]) -> None:
        try:
            name = (process / "comm").read_text(errors="replace").rstrip("\n")
            if name not in self._names:
                return
            with os.scandir(process / "fd") as descriptors:
                for descriptor in descriptors:
                    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                        target = str(Path(descriptor.path).readlink())
                        if target.startswith(_PREFIX):
                            found.setdefault(int(target[len(_PREFIX) : -1]), set()).add(name)
        except PermissionError as error:
            if self._is_complete:
                log.debug("the sockets of %s cannot be seen: %s", process.name, error)
            self._is_complete = False
        except (FileNotFoundError, ProcessLookupError):  # a process may end at any time
            return
