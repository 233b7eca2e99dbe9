"""Connections as they come, told by the kernel: who came when, for reports that do not say which one they mean.

Each is remembered for a while, with the moment at which it came to stand, by the clock that time.monotonic reads.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from scitags_agent.bpf.connections import ConnectionsProgram, cgroup_root
from scitags_agent.bpf.connections_layout import Connection, Event
from scitags_agent.host import Host
from scitags_agent.watch import ConnectionWatch, placed
from scitags_core.flow import FlowKey

KEEP_SECONDS = 10.0
MAX_KEPT = 1 << 16
# Of a round trip that was measured once, this much is taken as the least that another one takes.
SURE_SHARE = 0.9

_Ends = tuple[str, str]  # addresses, near and far


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """A connection that came while we watched.

    cookie   the kernel's name of its socket
    key      from our end to the far one
    stood    seconds: when it came to stand
    asked    seconds: what was sent later is not what it was made for. Who was sent here by a redirect, and connects,
             needs two round trips for it, and who connects from here one
    """

    cookie: int
    key: FlowKey
    stood: float
    asked: float

    @property
    def before(self) -> float:
        """When no packet of it had been sent yet."""
        return self.stood - (self.stood - self.asked) / SURE_SHARE


class Arrivals:
    """The program in the kernel, and what it has told lately. To be used in one event loop alone."""

    def __init__(self, heard: Callable[[], None], host: Host) -> None:
        """heard is called when any has come. Raises ConnectionsUnavailable."""
        self._heard = heard
        self._host = host
        self._by_cookie: OrderedDict[int, Arrival] = OrderedDict()  # the oldest first
        self._by_ends: dict[_Ends, deque[Arrival]] = {}
        self.lost = 0
        self._watch = ConnectionWatch(
            ConnectionsProgram(
                cgroup_root(),
                events=(Event.ACTIVE, Event.PASSIVE),
                all_namespaces=host.namespaces is not None,
            ),
            self._take,
            self._miss,
        )

    def between(self, near: str, far: str) -> Iterable[Arrival]:
        """Those from an address of ours to another's, or from there to here, the oldest first."""
        return self._by_ends.get((near, far), ())

    def __contains__(self, cookie: object) -> bool:
        return cookie in self._by_cookie

    def catch_up(self) -> None:
        """Take what the kernel has told until now."""
        self._watch.take_all()

    def close(self) -> None:
        """Watch no more."""
        self._watch.close()

    def _take(self, connections: Sequence[Connection]) -> None:
        if self._host.namespaces is not None:
            connections = placed(connections, self._host.namespaces)
        if not connections:
            return
        for one in connections:
            arrival = _arrival(one)
            self._by_cookie[arrival.cookie] = arrival
            self._by_ends.setdefault((one.key.src, one.key.dst), deque()).append(arrival)
        self._forget(arrival.stood - KEEP_SECONDS)
        self._heard()

    def _forget(self, before: float) -> None:
        kept = self._by_cookie
        while kept and (len(kept) > MAX_KEPT or next(iter(kept.values())).stood < before):
            _, old = kept.popitem(last=False)
            ends = old.key.src, old.key.dst
            known = self._by_ends[ends]
            known.popleft()
            if not known:
                del self._by_ends[ends]

    def _miss(self, lost: int) -> None:
        self.lost += lost


def _arrival(connection: Connection) -> Arrival:
    stood = connection.when / 1e9
    round_trips = 2 if connection.event is Event.PASSIVE else 1
    return Arrival(
        connection.cookie, connection.key, stood, stood - round_trips * SURE_SHARE * connection.rtt / 1_000_000
    )
