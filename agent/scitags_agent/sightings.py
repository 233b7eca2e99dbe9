"""Which connections with some ports are open, and when each was first seen: where the kernel does not tell of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from scitags_agent.candidates import Ports, as_it_is
from scitags_agent.connections import SOCKETS_AT_ONCE, dump
from scitags_agent.host import Host
from scitags_agent.inet_diag import OPEN_STATES, Connection
from scitags_core.flow import Transport

# With more ports in question than that, one look at everything costs less.
PORTS_ASKED_FOR = 4
_FOREVER_AGO = float("-inf")

Present = Mapping[Ports, list[Connection]]


class Sightings:
    """Of one matcher. To be used in one event loop alone."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._first: dict[Ports, dict[int, float]] = {}  # by our clock and by cookie

    async def look(self, asked: Collection[Ports]) -> Present:
        """The open connections with these ports. Raises OSError."""
        present: dict[Ports, list[Connection]] = {ports: [] for ports in asked}
        if len(asked) <= PORTS_ASKED_FOR:
            for protocol, near_port, far_port in asked:
                present[protocol, near_port, far_port] = await self.open_ones(protocol, near_port, far_port)
            return present
        for protocol in {ports[0] for ports in asked}:
            for one in await self.open_ones(protocol):
                for ports in ((protocol, one.local_port, 0), (protocol, 0, one.remote_port)):
                    if ports in present:
                        present[ports].append(one)
        return present

    def note(self, present: Present, now: float) -> None:
        """What a look has found; of ports that it did not ask for, all that was seen before is forgotten."""
        self._first = {ports: self._sighted(ports, connections, now) for ports, connections in present.items()}

    def of(self, ports: Ports) -> Mapping[int, float]:
        """When each of those with these ports, by cookie, was first seen, as of the last look."""
        return self._first[ports]

    def forget(self) -> None:
        """What comes from now on is not seen coming."""
        self._first.clear()

    def _sighted(self, ports: Ports, connections: list[Connection], now: float) -> dict[int, float]:
        """At the first look at these ports only what is young counts as seen coming."""
        known = self._first.get(ports)
        if known is None:
            return {one.cookie: now if as_it_is(one).is_young else _FOREVER_AGO for one in connections}
        return {one.cookie: known.get(one.cookie, now) for one in connections}

    async def open_ones(self, protocol: Transport, near_port: int = 0, far_port: int = 0) -> list[Connection]:
        """This host's open connections, by port where given; read in steps, so that others get their turn."""
        found = []
        for place in self._host.places:
            dumped = dump(protocol, local_port=near_port, remote_port=far_port, details=True, place=place)
            for count, one in enumerate(dumped, 1):
                if one.state in OPEN_STATES:
                    found.append(one)
                if count % SOCKETS_AT_ONCE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        return found
