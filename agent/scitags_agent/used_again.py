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

from scitags_agent.candidates import GRACE_SECONDS, as_it_is
from scitags_agent.host import Host
from scitags_agent.inet_diag import OPEN_STATES, Connection
from scitags_agent.waiting import Waiting
from scitags_core.flow import FlowKey

# One connection is looked up, for about 20 us: so often while its use is likely to begin, and so often later.
SOON_SECONDS = 0.003
LATER_SECONDS = 0.05


async def is_used_again(host: Host, one: Waiting, key: FlowKey, cookie: int, is_free: Callable[[], bool]) -> bool:
    """Wait until octets come by the connection with this key and cookie; False once it is gone.

    is_free says whether they would be those of the start that waits.
    """
    near = key if one.place.is_source else key.reversed()
    before: int | None = None
    while True:
        found = host.find(near)
        if not is_the_same(found, cookie):
            return False
        assert found is not None
        received = as_it_is(found).received
        if before is None or not is_free():
            before = received
        elif received > before:
            return True
        soon = time.monotonic() - one.arrived < GRACE_SECONDS
        await asyncio.sleep(SOON_SECONDS if soon else LATER_SECONDS)


def is_the_same(found: Connection | None, cookie: int) -> bool:
    """Whether a connection is there still, and no other one with its 5-tuple."""
    return found is not None and found.cookie == cookie and found.state in OPEN_STATES


def has_moved(connection: Connection, sent: int, received: int) -> bool:
    """Whether so many octets can have gone over it, of this end and of the other."""
    was = as_it_is(connection)
    return was.sent >= sent and was.received >= received
