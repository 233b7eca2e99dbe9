"""Which addresses are this host's."""

from __future__ import annotations

import errno
import socket
import time
from functools import lru_cache

_LOCAL_FOR_SECONDS = 10


def is_local(address: str) -> bool:
    """Whether an address is one of this host's. Remembered for some seconds."""
    return _remembered(address, int(time.monotonic()) // _LOCAL_FOR_SECONDS)


def can_bind(address: str) -> bool:
    """Whether an address is one of this network namespace's, now: whether a socket can be bound to it."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.bind((address, 0))
        except OSError as error:
            # A link-local address wants an interface (EINVAL): it may be ours.
            return error.errno == errno.EINVAL
    return True


@lru_cache(maxsize=1 << 12)
def _remembered(address: str, _moment: int) -> bool:
    return can_bind(address)
