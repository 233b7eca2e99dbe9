"""When a datagram came, as the kernel noted it: for one from this host, the moment at which it was sent.

Source: Documentation/networking/timestamping.rst (SO_TIMESTAMPNS), include/uapi/asm-generic/socket.h.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

SO_TIMESTAMPNS: Final = 35  # the note that comes with a datagram has the same number
_TIMESPEC = struct.Struct("@ll")
STAMP_ROOM: Final = socket.CMSG_SPACE(_TIMESPEC.size)
# Between two looks at one clock, for a look at the other; longer, and somebody else has run in between.
_CLOSE_NANOSECONDS = 20_000
_TRIES = 5

Notes = list[tuple[int, int, bytes]]  # ancillary data, as recvmsg gives it


def sent_at(notes: Notes) -> float | None:
    """In seconds, by time.monotonic; None where the kernel noted nothing. Some microseconds early."""
    for level, kind, octets in notes:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(octets) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(octets)
            return float(seconds * 1_000_000_000 + nanoseconds + _monotonic_minus_wall_clock()) / 1e9
    return None


def _monotonic_minus_wall_clock() -> int:
    """In nanoseconds, of several tries that in which least time passed."""
    least, difference = 0, 0
    for one in range(_TRIES):
        before = time.monotonic_ns()
        wall_clock = time.time_ns()
        passed = time.monotonic_ns() - before
        if not one or passed < least:
            least, difference = passed, before - wall_clock
        if passed <= _CLOSE_NANOSECONDS:
            break
    return difference
