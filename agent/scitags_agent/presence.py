"""Which flows have lost their connection: whose sockets were once there and are not any more."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from scitags_agent.connections import SOCKETS_AT_ONCE, Place, dump
from scitags_agent.host import OWN, Host
from scitags_agent.inet_diag import OPEN_STATES, SYN_SENT, Connection
from scitags_core.flow import FlowKey, Transport

# Fewer flows than that are looked up one by one.
FEW_FLOWS = 1000
ALIVE = OPEN_STATES | {SYN_SENT}


def find_alive(host: Host, key: FlowKey, zone: str = "") -> Connection | None:
    """The connection with that 5-tuple, at either end; a socket in TIME_WAIT is none. Raises SockDiagError."""
    for near in (key, key.reversed()):
        found = host.find(near, zone=zone, details=False)
        if found is not None and found.state in ALIVE:
            return found
    return None


class Presence:
    """Remembers which flows' connections were there. To be used in one event loop alone."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seen: set[FlowKey] = set()

    def have_seen(self, flows: Iterable[FlowKey]) -> None:
        """The connections of these flows have been there: an earlier agent knew."""
        self._seen.update(flows)

    @property
    def seen(self) -> Collection[FlowKey]:
        """The flows whose connections have been there, as of the last look."""
        return self._seen

    async def gone(self, flows: Collection[FlowKey]) -> set[FlowKey]:
        """Those flows whose connections have been there and are not any more.

        flows are all that are under way: others are forgotten. One whose connection was never seen is not gone, as
        its start may have come early. Raises SockDiagError.
        """
        under_way = set(flows)
        alive = await (self._looked_up(under_way) if len(under_way) <= FEW_FLOWS else self._dumped(under_way))
        seen = self._seen & under_way
        missing = seen - alive
        gone = missing - await self._looked_up(missing)  # a dump may miss one that lives on
        self._seen = (seen | alive) - gone
        return gone

    async def _looked_up(self, flows: set[FlowKey]) -> set[FlowKey]:
        alive: set[FlowKey] = set()
        for count, key in enumerate(flows, 1):
            if key.is_complete and find_alive(self._host, key) is not None:
                alive.add(key)
            if count % SOCKETS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return alive

    async def _dumped(self, flows: set[FlowKey]) -> set[FlowKey]:
        alive: set[FlowKey] = set()
        protocols: set[Transport] = {key.protocol for key in flows}
        for protocol in protocols:
            for place in self._host.places:
                await self._dumped_there(protocol, place, flows, alive)
        return alive

    async def _dumped_there(self, protocol: Transport, place: Place, flows: set[FlowKey], alive: set[FlowKey]) -> None:
        for count, one in enumerate(dump(protocol, place=place), 1):
            keys = {one.key, one.key.reversed()}
            if place.number != OWN:  # of some flows it is not known where they are
                keys |= {key.within(OWN) for key in keys}
            alive.update(keys & flows)
            if count % SOCKETS_AT_ONCE == 0:
                await asyncio.sleep(0)
