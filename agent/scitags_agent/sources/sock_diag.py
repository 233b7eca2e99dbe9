"""Connections of this host that nobody announces, found by looking at what there is, tagged by rules.

A connection begins when it is first seen, and its local end is the flow's source. Its end is told by the kernel at
once, with the octets that it moved (Linux 4.7 and later), or found by the next look. One that comes and goes between
two looks is told of when it goes, unless a rule asks for more than the kernel says then: both ends and the octets.

The source `sock_ops` misses nothing and sees the first packet, but wants eBPF and privileges; this one wants neither,
and finds what was open before the agent came. In other network namespaces it looks where those are configured
(scitags_agent.namespaces).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from scitags_agent import tcp_info
from scitags_agent.connections import SOCKETS_AT_ONCE, Place, survey
from scitags_agent.host import Host, HostDepartures
from scitags_agent.inet_diag import INFO, OPEN_STATES, Connection, SockDiagError
from scitags_agent.namespaces import checked
from scitags_agent.rules import PROGRAM_CHARACTERS, Candidate, Rule, Rules
from scitags_agent.socket_holders import SocketHolders
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Transport, Usage
from scitags_core.roles import EventSink, SourceKind
from scitags_core.tag import Tag

log = logging.getLogger(__name__)

# A look takes no more than this share of the time, however many sockets there are.
SHARE = 0.05
OVER_REMEMBERED = 1 << 14


class SockDiagSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """rule: scitags_agent.rules. interval is in seconds, from one look to the next.

    namespaces   network namespaces besides the agent's own (scitags_agent.namespaces)
    """

    rule: list[Rule] = []
    interval: Annotated[float, msgspec.Meta(ge=0.05, le=3600)] = 2.0
    namespaces: list[str] = []


class _Told(msgspec.Struct):
    """A connection of which a start was told."""

    key: FlowKey
    tag: Tag
    zone: str
    usage: Usage | None = None


class SockDiag:
    """The source."""

    def __init__(self, settings: SockDiagSettings) -> None:
        self._interval = settings.interval
        self._namespaces = checked(settings.namespaces)
        self._rules = Rules(settings.rule)
        self._programs = {rule.program[:PROGRAM_CHARACTERS] for rule in settings.rule if rule.program}
        # UDP is looked at when a rule asks for it: a host has many such sockets, for names alone.
        asked: set[Transport] = {rule.protocol or "tcp" for rule in settings.rule}
        self._protocols = sorted(asked)
        # Every socket that was seen, by namespace and protocol, and by cookie; None where no rule gave a tag.
        self._known: dict[tuple[int, Transport], dict[int, _Told | None]] = {}
        self._missing: set[int] = set()  # those that the last look did not see, of which the kernel has not told yet
        self._over: OrderedDict[int, None] = OrderedDict()  # of whose ends the kernel may tell yet
        self._host: Host | None = None
        self._departures: HostDepartures | None = None

    async def run(self, sink: EventSink) -> None:
        """Look until cancelled. Raises SockDiagError. Flows under way are left as they are."""
        with contextlib.ExitStack() as stack:
            self._host = host = Host(self._namespaces)
            stack.callback(host.close)
            self._listen(host, sink, stack)
            while True:
                began = time.monotonic()
                for place in host.places:
                    for protocol in self._protocols:
                        try:
                            await self._look(protocol, place, host, sink)
                        except OSError:
                            if place in host.places:
                                raise
                            # The namespace has gone meanwhile.
                await asyncio.sleep(max(self._interval, (time.monotonic() - began) / SHARE))

    def _listen(self, host: Host, sink: EventSink, stack: contextlib.ExitStack) -> None:
        """For ends, as sockets go, and namespaces."""
        self._departures = None
        try:
            self._departures = HostDepartures(host, lambda connection: self._departed(connection, sink))
            stack.callback(self._departures.close)
        except SockDiagError as error:
            log.warning("%s: ends are found every %g s", error, self._interval)
        if host.namespaces is not None:

            def came(_: Place) -> None:
                """The next look finds what is there."""

            # After the departures, which tell more of those that they know.
            host.namespaces.watch(came, lambda place: self._all_gone(place.number, sink))
            stack.callback(host.namespaces.unwatch, came)

    async def _look(self, protocol: Transport, place: Place, host: Host, sink: EventSink) -> None:
        known = self._known.setdefault((place.number, protocol), {})
        before = set(known)
        present: set[int] = set()
        holders = SocketHolders(self._programs)
        for count, (cookie, connection) in enumerate(survey(protocol, known, place), 1):
            present.add(cookie)
            if connection is not None and connection.state in OPEN_STATES:
                self._begin(connection, holders, sink)
            if count % SOCKETS_AT_ONCE == 0:
                await asyncio.sleep(0)
                if place not in host.places:
                    return
        for cookie in before - present:
            self._missed(known, cookie, host, sink)
        if self._departures is None and protocol == "tcp":
            for count, told in enumerate(list(known.values()), 1):
                if told is not None:
                    told.usage = _usage_of(host.find(told.key, zone=told.zone)) or told.usage
                if count % SOCKETS_AT_ONCE == 0:
                    await asyncio.sleep(0)

    def _all_gone(self, namespace: int, sink: EventSink) -> None:
        for protocol in self._protocols:
            for cookie, told in self._known.pop((namespace, protocol), {}).items():
                self._missing.discard(cookie)
                if told is not None:
                    sink.accept(self._event(FlowState.END, cookie, told))

    def _begin(self, connection: Connection, holders: SocketHolders, sink: EventSink) -> None:
        def programs() -> Collection[str]:
            return holders.of(connection.inode)

        tag = self._match(connection, uid=connection.uid, programs=programs)
        known = self._known.setdefault((connection.namespace, connection.protocol), {})
        known[connection.cookie] = self._start(connection, tag, sink) if tag else None

    def _match(self, connection: Connection, *, uid: int | None, programs: Callable[[], Collection[str]]) -> Tag | None:
        return self._rules.match(Candidate(connection.key, uid, connection.cgroup, programs))

    def _start(self, connection: Connection, tag: Tag, sink: EventSink) -> _Told:
        told = _Told(connection.key, tag, _zone(connection))
        sink.accept(self._event(FlowState.START, connection.cookie, told))
        return told

    def _missed(self, known: dict[int, _Told | None], cookie: int, host: Host, sink: EventSink) -> None:
        """A socket that was there before and was not in the last dump: which may miss one that lives on."""
        told = known.get(cookie)
        if told is not None:
            found = host.find(told.key, zone=told.zone, details=False)
            if found is not None and found.cookie == cookie and found.state in OPEN_STATES:
                self._missing.discard(cookie)
                return
            if self._departures is not None and cookie not in self._missing:
                self._missing.add(cookie)  # the kernel tells of a socket a moment after it has gone
                return
            self._missing.discard(cookie)
            self._over[cookie] = None
            if len(self._over) > OVER_REMEMBERED:
                self._over.popitem(last=False)
            sink.accept(self._event(FlowState.END, cookie, told))
        known.pop(cookie, None)

    def _departed(self, connection: Connection, sink: EventSink) -> None:
        if connection.protocol not in self._protocols:
            return
        known = self._known.setdefault((connection.namespace, connection.protocol), {})
        self._missing.discard(connection.cookie)
        if connection.cookie in self._over:
            return
        usage = _usage_of(connection) if connection.remote_port else None
        if connection.cookie in known:
            told = known.pop(connection.cookie)
        elif usage is not None and (usage.sent or usage.received):
            tag = self._match(connection, uid=None, programs=tuple)
            told = self._start(connection, tag, sink) if tag else None
        else:
            told = None
        if told is not None:
            told.usage = usage
            sink.accept(self._event(FlowState.END, connection.cookie, told))

    def _event(self, state: FlowState, cookie: int, told: _Told) -> FlowEvent:
        now = datetime.now(UTC)
        over = state is FlowState.END
        return FlowEvent(
            state=state,
            key=told.key if self._host is None else self._host.said(told.key),
            tag=told.tag,
            start_time=None if over else now,
            end_time=now if over else None,
            usage=told.usage if over else None,
            # Ends of ours never end what a storage has announced on the same connection; and an agent that comes after
            # this one, or another source that sees the same socket, counts it once.
            transfer_id=f"socket-{cookie}",
            zone=told.zone,
        )


def _usage_of(connection: Connection | None) -> Usage | None:
    info = tcp_info.decode(connection.attributes().get(INFO, b"")) if connection is not None else {}
    return Usage(received=tcp_info.payload_received(info), sent=tcp_info.payload_sent(info)) if info else None


def _zone(connection: Connection) -> str:
    """The interface of a link-local connection, by its index."""
    return str(connection.interface) if connection.interface and connection.local.startswith("fe8") else ""


KIND = SourceKind("sock_diag", SockDiagSettings, SockDiag)
