"""Octets of a flow at its end, as the kernel counted them when the connection closed. Nothing is polled.

An `end` gets `usage`, and the object `skOps` of flowd-go, where its reporter gave none. The kernel tells of every
connection as it closes (scitags_agent.bpf.connections); that is kept for some seconds, for the `end` to come. Of a
connection that is still open when its flow ends, sock_diag is asked, once.

The kernel counts for a connection, not for a transfer. What was given to one `end` is not given to another again: of
transfers that follow each other on a connection each gets what moved since the last, of those that overlap the first
to end gets all, so that sums are true.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from scitags_agent import tcp_info
from scitags_agent.bpf.connections import ConnectionsProgram
from scitags_agent.bpf.connections_layout import Connection, Event, TcpState
from scitags_agent.host import OWN, Host
from scitags_agent.inet_diag import INFO, SockDiagError
from scitags_agent.namespaces import checked
from scitags_agent.rules import Ports, Rule
from scitags_agent.watch import ConnectionWatch, cgroup_path, check_buffer, details, placed, port_filters, usage_of
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.roles import EnricherKind

log = logging.getLogger(__name__)

SKOPS = "skOps"


class SockOpsEnricherSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of which connections to know, and how long.

    local_ports, remote_ports    of connections that may bear flows; empty: any. Others wake nobody
    cgroup          of the processes that have them, a path below the mount of cgroup2; empty: all
    namespaces      connections of these network namespaces, too (scitags_agent.namespaces)
    all_namespaces  of any others as well, without knowing which
    keep_seconds    how long after a connection has closed its `end` may come
    max_closed      connections that are remembered at most
    buffer          octets for what the kernel has reported and we have not read: a power of two, 4 KiB to 1 GiB
    """

    local_ports: Ports = []
    remote_ports: Ports = []
    cgroup: str = ""
    namespaces: list[str] = []
    all_namespaces: bool = False
    keep_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    max_closed: Annotated[int, msgspec.Meta(ge=1)] = 1 << 16
    buffer: Annotated[int, msgspec.Meta(ge=1 << 12, le=1 << 30)] = 1 << 20


class _Counted(msgspec.Struct, frozen=True):
    """What a connection has moved, seen from its local end, which is the source of key."""

    key: FlowKey
    cookie: int
    sent: int
    received: int
    details: dict[str, Any]


class SockOpsEnricher:
    """The enricher."""

    def __init__(self, settings: SockOpsEnricherSettings) -> None:
        """Raises ConfigError for ports that are none."""
        check_buffer(settings.buffer)
        checked(settings.namespaces)
        self._settings = settings
        ports = Rule(local_ports=settings.local_ports, remote_ports=settings.remote_ports)
        self._filters = port_filters([ports])
        self._closed: OrderedDict[FlowKey, tuple[float, Connection]] = OrderedDict()  # the oldest first
        self._given: OrderedDict[int, tuple[int, int]] = OrderedDict()  # by cookie: of connections that were open
        self._counters = Counter(from_close=0, from_look_up=0, no_connection=0, lost=0)
        self._watch: ConnectionWatch | None = None
        self._host: Host | None = None

    async def start(self) -> None:
        """Raises ConnectionsUnavailable."""
        program = ConnectionsProgram(
            cgroup_path(self._settings.cgroup),
            filters=self._filters,
            events=(Event.CLOSED,),
            all_namespaces=self._settings.all_namespaces or bool(self._settings.namespaces),
            ring_octets=self._settings.buffer,
        )
        self._watch = ConnectionWatch(program, self._hear, self._miss)
        try:
            self._host = Host(self._settings.namespaces)
        except SockDiagError as error:
            log.warning("%s: of a connection that is open when its flow ends nothing will be known", error)

    def enrich(self, event: FlowEvent) -> FlowEvent:
        if event.state is not FlowState.END or event.key.protocol != "tcp" or self._watch is None:
            return event
        if event.usage is not None and SKOPS in event.extra:
            return event
        counted = self._find(event)
        if counted is None:
            self._counters["no_connection"] += 1
            return event
        return msgspec.structs.replace(
            event,
            usage=event.usage or usage_of(counted.sent, counted.received, is_source=counted.key == event.key),
            extra={SKOPS: counted.details, **event.extra},
        )

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._host is not None:
            self._host.close()

    def counters(self) -> Mapping[str, int]:
        return {**self._counters, "closed": len(self._closed)}

    def _hear(self, connections: Sequence[Connection]) -> None:
        if self._host is not None and self._host.namespaces is not None:
            connections = placed(connections, self._host.namespaces, strange=self._settings.all_namespaces)
        now = time.monotonic()
        for connection in connections:
            self._closed.pop(connection.key, None)
            self._closed[connection.key] = now, connection
        while len(self._closed) > self._settings.max_closed or self._oldest() < now - self._settings.keep_seconds:
            _, (_, gone) = self._closed.popitem(last=False)
            self._given.pop(gone.cookie, None)

    def _oldest(self) -> float:
        """When the connection closed that is remembered longest; infinity when there is none."""
        return next(iter(self._closed.values()))[0] if self._closed else math.inf

    def _miss(self, lost: int) -> None:
        if not self._counters["lost"]:
            log.warning(
                "%d reports of connections were lost: buffer %d is full (said once, counted from here)",
                lost,
                self._settings.buffer,
            )
        self._counters["lost"] += lost

    def _find(self, event: FlowEvent) -> _Counted | None:
        """What is known of the connection of an end, less what an earlier end has had of it."""
        assert self._watch is not None
        self._watch.take_all()  # what has closed this instant waits there
        found = self._take_closed(event.key)
        if found is None:
            found = self._look_up(event)
        if found is None:
            # It closed between the two, which the kernel tells before it forgets the socket.
            self._watch.take_all()
            found = self._take_closed(event.key)
        return found

    def _take_closed(self, key: FlowKey) -> _Counted | None:
        for one in self._names_of(key):
            when, connection = self._closed.pop(one, (0.0, None))
            if connection is not None and when >= time.monotonic() - self._settings.keep_seconds:
                sent, received = self._given.pop(connection.cookie, (0, 0))
                self._counters["from_close"] += 1
                return _Counted(
                    one.within(key.namespace),
                    connection.cookie,
                    max(0, connection.sent - sent),
                    max(0, connection.received - received),
                    details(connection),
                )
        return None

    def _names_of(self, key: FlowKey) -> Iterator[FlowKey]:
        """Under which its connection may have closed: anywhere, when it is not known where it is."""
        yield from (key, key.reversed())
        if key.namespace == OWN and self._host is not None and self._host.namespaces is not None:
            for number in self._host.namespaces.present:
                yield from (key.within(number), key.reversed().within(number))

    def _look_up(self, event: FlowEvent) -> _Counted | None:
        if self._host is None or not event.key.is_complete:
            return None
        for one in (event.key, event.key.reversed()):
            found = self._host.find(one, zone=event.zone)
            info = tcp_info.decode(found.attributes().get(INFO, b"")) if found is not None else {}
            if found is not None and info:
                moved = tcp_info.payload_sent(info), tcp_info.payload_received(info)
                sent, received = self._given.pop(found.cookie, (0, 0))
                self._given[found.cookie] = moved
                if len(self._given) > self._settings.max_closed:
                    self._given.popitem(last=False)
                self._counters["from_look_up"] += 1
                return _Counted(
                    one, found.cookie, max(0, moved[0] - sent), max(0, moved[1] - received), _details(info, *moved)
                )
        return None


def _details(info: Mapping[str, int], sent: int, received: int) -> dict[str, Any]:
    """As scitags_agent.watch.details, from tcp_info: what an older kernel does not tell is 0."""
    names = {
        "sndMss": "snd_mss",
        "sndCwnd": "snd_cwnd",
        "rtt": "rtt",
        "minRtt": "min_rtt",
        "lost": "lost",
        "totalRetrans": "total_retrans",
        "segsOut": "segs_out",
        "segsIn": "segs_in",
        "delivered": "delivered",
        "deliveredCe": "delivered_ce",
    }
    told = {name: info.get(kernel, 0) for name, kernel in names.items()}
    return {"tcpInfo": {"state": TcpState(info["state"]).name, **told, "bytesAcked": sent, "bytesRecv": received}}


KIND = EnricherKind("sock_ops", SockOpsEnricherSettings, SockOpsEnricher)
