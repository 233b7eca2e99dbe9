"""What the kernel knows of a flow's connection, added to the flow's events: octets moved, tcp_info, memory.

An event whose flow ends at this host gets `usage` and the object `netlink`, where its reporter gave none. The kernel
counts for a connection, not for a transfer, and each octet is given to one transfer alone, so that sums are true: an
end gets what moved since the one before on the same connection. Of transfers that overlap the first to end gets most.

What an `end` says when the socket is already gone was told by the kernel as it went (from Linux 4.7 on), or is what
was seen with the event before.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Annotated

import msgspec

from scitags_agent import tcp_info
from scitags_agent.host import OWN, Host, HostDepartures
from scitags_agent.inet_diag import CONG, INFO, Connection, SockDiagError
from scitags_agent.namespaces import checked
from scitags_agent.netlink_object import SHAPES, Attributes, Shape
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.roles import EnricherKind

log = logging.getLogger(__name__)

NETLINK = "netlink"
_DEPARTED = bytes([tcp_info.CLOSE])  # the first octet of tcp_info is the state


class SockDiagSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """shape of the object netlink (scitags_agent.netlink_object); how many flows are remembered at most.

    namespaces   network namespaces besides the agent's own in which connections are (scitags_agent.namespaces)
    """

    shape: Shape = "lean"
    max_flows: Annotated[int, msgspec.Meta(ge=1)] = 200_000
    namespaces: list[str] = []


class _Seen(msgspec.Struct, frozen=True):
    """A socket as it was at some moment, its message taken apart."""

    connection: Connection
    attributes: Attributes

    @property
    def moved(self) -> tuple[int, int]:
        """Octets sent and received so far; the kernel counts none for UDP."""
        info = tcp_info.decode(self.attributes.get(INFO, b""))
        return (tcp_info.payload_sent(info), tcp_info.payload_received(info)) if info else (0, 0)


class _Flow(msgspec.Struct):
    """What is remembered of a flow.

    users         transfers under way
    cookie        of the socket that was seen last, 0 while none was
    last          the kernel's last word on it: its tcp_info
    is_source     whether that socket is at the flow's source
    sent, received    of the socket, at the end of the transfer that ended last
    congestion, inode   of the socket, which does not tell them again as it goes
    """

    users: int = 0
    cookie: int = 0
    last: bytes = b""
    is_source: bool = True
    sent: int = 0
    received: int = 0
    congestion: bytes = b""
    inode: int = 0


class SockDiagEnricher:
    """The enricher."""

    def __init__(self, settings: SockDiagSettings) -> None:
        self._shape = SHAPES[settings.shape]
        self._max_flows = settings.max_flows
        self._namespaces = checked(settings.namespaces)
        self._flows: OrderedDict[FlowKey, _Flow] = OrderedDict()  # that has been silent longest is first
        self._host: Host | None = None
        self._departures: HostDepartures | None = None
        self._counters: Counter[str] = Counter(found=0, no_socket=0, from_memory=0, forgotten=0)

    async def start(self) -> None:
        self._host = Host(self._namespaces)
        try:
            self._departures = HostDepartures(self._host, self._departed)
        except SockDiagError as error:
            log.warning("%s: an end that comes late says what was known before", error)

    def enrich(self, event: FlowEvent) -> FlowEvent:
        key = event.key
        if not key.is_complete or self._host is None:
            return event
        flow = self._flows.get(key)
        live = _find(event, self._host)
        seen = live
        if live is not None:
            self._counters["found"] += 1
        elif flow is not None and event.state is FlowState.END:
            seen = self._last(key, flow)
        if seen is None:
            self._counters["no_socket"] += 1
        if event.state is not FlowState.END:
            flow = self._remember(event, flow, live)
        said = event if seen is None else self._told(event, seen, flow)
        if flow is not None and event.state is FlowState.END:
            self._ended(key, flow, seen, is_live=live is not None)
        return said

    async def close(self) -> None:
        if self._departures is not None:
            self._departures.close()
        if self._host is not None:
            self._host.close()

    def counters(self) -> Mapping[str, int]:
        lost = self._departures.lost if self._departures is not None else 0
        return {**self._counters, "flows": len(self._flows), "departures_lost": lost}

    def _last(self, key: FlowKey, flow: _Flow) -> _Seen | None:
        if self._departures is not None and flow.last[:1] != _DEPARTED:
            self._departures.read(key.namespace)  # the socket may just have gone
        if not flow.last:
            return None
        self._counters["from_memory"] += 1
        near = key if flow.is_source else key.reversed()
        ends = near.protocol, near.src, near.src_port, near.dst, near.dst_port
        connection = Connection(*ends, state=flow.last[0], uid=0, inode=flow.inode, cookie=flow.cookie)
        return _Seen(connection, {INFO: flow.last, CONG: flow.congestion})

    def _remember(self, event: FlowEvent, flow: _Flow | None, live: _Seen | None) -> _Flow:
        if flow is None:
            flow = self._flows[event.key] = _Flow()
            if len(self._flows) > self._max_flows:
                self._flows.popitem(last=False)
                self._counters["forgotten"] += 1
        self._flows.move_to_end(event.key)
        if event.state is FlowState.START:
            flow.users += 1
        else:
            flow.users = max(flow.users, 1)
        if live is None:
            return flow
        connection = live.connection
        if connection.cookie != flow.cookie:
            flow.cookie, flow.sent, flow.received, flow.last = connection.cookie, 0, 0, b""
        flow.congestion = _interned(live.attributes.get(CONG, b""))
        flow.inode = connection.inode
        flow.is_source = _is_source(connection, event.key)
        # Its last word will come as it goes. Until it does, the first is not worth its 300 octets.
        if self._departures is None or event.state is FlowState.ONGOING:
            flow.last = live.attributes.get(INFO, b"")
        return flow

    def _departed(self, connection: Connection) -> None:
        """A socket has gone: when it was a flow's, keep what it moved until the flow's end is told."""
        ends = [connection.key, connection.key.reversed()]
        if connection.namespace != OWN:  # of some flows it is not known where they are
            ends += [key.within(OWN) for key in ends]
        for key in ends:
            flow = self._flows.get(key)
            if flow is None or (flow.cookie and flow.cookie != connection.cookie):
                continue
            if not flow.users:
                del self._flows[key]
                continue
            flow.cookie = connection.cookie
            flow.last = connection.attributes().get(INFO, b"")
            flow.is_source = _is_source(connection, key)

    def _told(self, event: FlowEvent, seen: _Seen, flow: _Flow | None) -> FlowEvent:
        changes: dict[str, object] = {}
        if event.usage is None and INFO in seen.attributes:
            changes["usage"] = _usage(event.key, seen, flow)
        if NETLINK not in event.extra and (content := self._shape(seen.connection, seen.attributes)):
            changes["extra"] = {**event.extra, NETLINK: content}
        return msgspec.structs.replace(event, **changes) if changes else event

    def _ended(self, key: FlowKey, flow: _Flow, seen: _Seen | None, *, is_live: bool) -> None:
        flow.users -= 1
        if seen is not None:
            flow.cookie = seen.connection.cookie
            flow.sent, flow.received = seen.moved
        if flow.users > 0:
            return
        if is_live:  # and may be used again
            flow.users, flow.last = 0, b""
        else:
            del self._flows[key]


def _is_source(connection: Connection, key: FlowKey) -> bool:
    """Whether a socket is at the source of a flow, of which it may not be known in which namespace it is."""
    return connection.key.within(key.namespace) == key


def _find(event: FlowEvent, host: Host) -> _Seen | None:
    """The live socket at whichever end of the flow is here; the source's, when both are."""
    for near in (event.key, event.key.reversed()):
        connection = host.find(near, zone=event.zone)
        if connection is None:
            continue
        attributes = connection.attributes()
        # What is left in TIME_WAIT, or waits to be accepted, tells nothing.
        if near.protocol == "udp" or INFO in attributes:
            return _Seen(connection, attributes)
    return None


def _usage(key: FlowKey, seen: _Seen, flow: _Flow | None) -> Usage:
    """As the flow's source counts, whichever end is here."""
    sent, received = seen.moved
    if flow is not None and flow.cookie == seen.connection.cookie:
        sent, received = sent - flow.sent, received - flow.received
    if _is_source(seen.connection, key):
        return Usage(sent=sent, received=received)
    return Usage(sent=received, received=sent)


_NAMES: dict[bytes, bytes] = {}


def _interned(name: bytes) -> bytes:
    """A host has a handful of congestion controls, and many flows."""
    return _NAMES.setdefault(name, name)


KIND = EnricherKind("sock_diag", SockDiagSettings, SockDiagEnricher)
