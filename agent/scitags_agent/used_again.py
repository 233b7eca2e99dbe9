"""A client that uses its connection for another transfer: its next start means that one, and none that is to come.

Clients of HTTP and xroot keep their connections open, to the door as to the pool. The starts of such a client are then
told with one and the same 5-tuple (its connection to the door), and what the last of them stood for is still there. Its
next request shows which connection is meant: octets that come by the old one, while no new one has come.

Nothing is guessed: octets that come while another transfer has the connection count for that one, and while a start
with another tag waits for a connection of the same client, nothing is decided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from scitags_agent.candidates import GRACE_SECONDS, as_it_is
from scitags_agent.host import Host
from scitags_agent.inet_diag import OPEN_STATES, Connection
from scitags_agent.waiting import Waiting
from scitags_core.flow import FlowKey

# One connection is looked up, for about 20 us: so often while its use is likely to begin, and so often later.
SOON_SECONDS = 0.003
LATER_SECONDS = 0.05


class Kept(msgspec.Struct, frozen=True):
    """A connection that its client keeps, as a flow named it, its cookie, and the octets that had come by it."""

    key: FlowKey
    cookie: int
    received: int


def kept(host: Host, one: Waiting, key: FlowKey, cookie: int) -> Kept | None:
    """The connection of an earlier flow as it is now; None once it is gone. Raises SockDiagError."""
    near = key if one.place.is_source else key.reversed()
    found = host.find(near)
    if found is None or found.cookie != cookie or found.state not in OPEN_STATES:
        return None
    return Kept(key, cookie, as_it_is(found).received)


async def is_used_again(host: Host, one: Waiting, before: Kept, is_free: Callable[[], bool]) -> bool:
    """Wait until more octets have come by the connection than before; False once it is gone.

    is_free says whether they would be those of the start that waits. Raises SockDiagError.
    """
    while True:
        now = kept(host, one, before.key, before.cookie)
        if now is None:
            return False
        if not is_free():
            before = now
        elif now.received > before.received:
            return True
        soon = time.monotonic() - one.arrived < GRACE_SECONDS
        await asyncio.sleep(SOON_SECONDS if soon else LATER_SECONDS)


def has_moved(connection: Connection, sent: int, received: int) -> bool:
    """Whether so many octets can have gone over it, of this end and of the other."""
    was = as_it_is(connection)
    return was.sent >= sent and was.received >= received
