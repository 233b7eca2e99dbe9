"""Files that other programs of this host meet us at: their mode and group, and whether they are still there."""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import re
import socket
from pathlib import Path

from scitags_core.errors import ConfigError, shown

CHECK_SECONDS = 1.0

_MODE = re.compile("[0-7]{3,4}")


def parse_mode(text: str) -> int:
    """A file mode from its octal text, 000..0777. Raises ConfigError."""
    if not _MODE.fullmatch(text) or int(text, 8) > 0o777:  # noqa: PLR2004
        raise ConfigError(f"mode {shown(text)} is not an octal file mode such as '0660'")
    return int(text, 8)


def group_id(name: str) -> int:
    """The id of a group by its name; -1, which leaves a file's group alone, for the empty name."""
    if not name:
        return -1
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {shown(name)}") from None


def admit(path: Path, mode: int, group: int) -> None:
    """Set who may use the file; the umask has no say. Raises OSError."""
    if group >= 0:
        os.chown(path, -1, group)
    path.chmod(mode)


def is_dead(path: Path) -> bool:
    """Whether a socket is there that nobody serves, whatever its type. What cannot be told is taken as alive."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(os.fspath(path))
            except ConnectionRefusedError:
                return True
            except OSError as error:
                if error.errno == errno.EPROTOTYPE:
                    continue
        return False
    return False


class OwnSocket:
    """The file of a socket that we have just bound: nobody comes to the socket once its file has gone."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._made = path.lstat()

    def is_there(self) -> bool:
        """Whether that file, and no other, is at the path."""
        try:
            return os.path.samestat(self._path.lstat(), self._made)
        except OSError:
            return False

    async def watch(self) -> None:
        """Return never; OSError within a second of the file's going: the socket has to be made anew."""
        while self.is_there():  # noqa: ASYNC110  (nothing else tells of it)
            await asyncio.sleep(CHECK_SECONDS)
        raise OSError(f"{self._path} has been taken away, and is made anew")

    def remove(self) -> None:
        """Take the file away, unless it is another's by now."""
        if self.is_there():
            self._path.unlink()
