"""Connections whose packets may be longer than IPv6 has room to say (BIG TCP).

The kernel puts a header in front of TCP's that says it, and takes it away before such a packet is cut into segments. It
does not find it where a header of the socket's stands behind: the segments leave with it, and whoever gets them drops
them (seen with Linux 6.18; ipv6_has_hopopt_jumbo of include/net/ipv6.h wants TCP next to it).
"""

from __future__ import annotations

import errno

from scitags_agent.rtnetlink import RouteSocket
from scitags_core.flow import FlowKey

_LONGEST = 65536  # GSO_LEGACY_MAX_SIZE


def may_be_big(key: FlowKey) -> bool:
    """Whether packets of a TCP connection may be, as this thread's network namespace sends them. Raises OSError."""
    with RouteSocket() as asked:
        return any(_leaves_big(asked, end) for end in (key, key.reversed()))


def _leaves_big(asked: RouteSocket, end: FlowKey) -> bool:
    try:
        interfaces = asked.resolved(end.dst, end.src).interfaces
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return False
        raise
    return any(asked.gso_max_size(index) > _LONGEST for index in interfaces)
