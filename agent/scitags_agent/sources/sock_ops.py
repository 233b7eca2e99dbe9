"""TCP connections that nobody announces, from their first packet on: told by the kernel, tagged by rules.

Two kinds. `sock_ops` takes the rules of scitags_agent.rules. `iperf3` gives the connections of measurements one tag
after the other, or random ones, as flowd-go's plug-in of that name does.

What the program in the kernel saw open it also sees close; the end bears the octets of the whole connection. What was
open before the agent came is not seen: the source `sock_diag` finds it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import msgspec

from scitags_agent.bpf.connections import ConnectionsProgram
from scitags_agent.bpf.connections_layout import Connection, Event
from scitags_agent.host import Host
from scitags_agent.namespaces import checked
from scitags_agent.rules import Candidate, Ports, Rule, Rules
from scitags_agent.watch import (
    ConnectionWatch,
    cgroup_path,
    check_buffer,
    details,
    instant,
    placed,
    port_filters,
    usage_of,
    zone,
)
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.roles import EventSink, SourceKind
from scitags_core.tag import Tag

log = logging.getLogger(__name__)

DEFAULT_BUFFER = 1 << 20
MAX_BUFFER = 1 << 30
MAX_CONNECTIONS = 1 << 20
IPERF3_PORT = 5201

Buffer = Annotated[int, msgspec.Meta(ge=1 << 12, le=MAX_BUFFER)]


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds have.

    cgroup          watch the processes of this cgroup alone, a path below the mount of cgroup2; empty: all
    namespaces      connections of these network namespaces, too (scitags_agent.namespaces)
    all_namespaces  of any others as well, without knowing which
    from_first_packet   an outgoing connection begins with its first SYN, not when it is established
    buffer          octets for what the kernel has reported and we have not read: a power of two, 4 KiB to 1 GiB
    """

    cgroup: str = ""
    namespaces: list[str] = []
    all_namespaces: bool = False
    from_first_packet: bool = True
    buffer: Buffer = DEFAULT_BUFFER


class SockOpsSettings(Watching, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """rule: scitags_agent.rules."""

    rule: list[Rule] = []


class TagChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tag; each part by name, alias or id."""

    experiment: int | str
    activity: int | str


class Iperf3Settings(Watching, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which connections bear which tags.

    tags            those that take turns
    order           "sequential", or "random": any of them for each connection
    ports           connections with one of these ports at either end
    local_ports, remote_ports    instead of ports, when either is given: the ports at this end and at the other
    """

    tags: list[TagChoice]
    order: Literal["sequential", "random"] = "sequential"
    ports: Ports = msgspec.field(default_factory=lambda: [IPERF3_PORT])
    local_ports: Ports = []
    remote_ports: Ports = []


class Tagger(Protocol):
    """Gives a connection its tag, or none."""

    def match(self, candidate: Candidate) -> Tag | None: ...


class Turns:
    """Rules that give one tag each to the same connections, in turn or at random."""

    def __init__(self, choices: list[Rules], order: Literal["sequential", "random"]) -> None:
        self._choices = choices
        self._random = order == "random"
        self._next = 0

    def match(self, candidate: Candidate) -> Tag | None:
        count = len(self._choices)
        tag = self._choices[secrets.randbelow(count) if self._random else self._next].match(candidate)
        if tag is not None:
            self._next = (self._next + 1) % count
        return tag


class SockOps:
    """The source."""

    def __init__(self, settings: Watching, rules: list[Rule], tagger: Tagger) -> None:
        check_buffer(settings.buffer)
        if any(rule.program for rule in rules):
            raise ConfigError("program: at its first packet a connection's program is not known; sock_diag knows it")
        self._settings = settings
        checked(settings.namespaces)
        self._filters = port_filters(rules)
        self._tagger = tagger
        self._asks_for_socket = any(rule.user is not None or rule.cgroup for rule in rules)
        self._host: Host | None = None
        # What began and has not ended, the oldest first: cookie of the socket to the tag that it was given.
        self._open: OrderedDict[int, Tag | None] = OrderedDict()

    async def run(self, sink: EventSink) -> None:
        """Watch until cancelled. Raises ConnectionsUnavailable."""
        first = Event.OPENING if self._settings.from_first_packet else Event.ACTIVE
        program = ConnectionsProgram(
            cgroup_path(self._settings.cgroup),
            filters=self._filters,
            events=(first, Event.PASSIVE, Event.CLOSED),
            all_namespaces=self._settings.all_namespaces or bool(self._settings.namespaces),
            ring_octets=self._settings.buffer,
        )
        watch = ConnectionWatch(
            program,
            lambda connections: self._hear(connections, sink),
            lambda lost: sink.refuse(
                f"{lost} reports of connections were lost: buffer {self._settings.buffer} is full"
            ),
        )
        try:
            if self._asks_for_socket or self._settings.namespaces:
                self._host = Host(self._settings.namespaces)
            await asyncio.get_running_loop().create_future()
        finally:
            watch.close()
            if self._host is not None:
                self._host.close()
                self._host = None

    def _hear(self, connections: Sequence[Connection], sink: EventSink) -> None:
        if self._host is not None and self._host.namespaces is not None:
            connections = placed(connections, self._host.namespaces, strange=self._settings.all_namespaces)
        events = [event for event in map(self._event_of, connections) if event is not None]
        if events:
            sink.accept_many(events)

    def _event_of(self, connection: Connection) -> FlowEvent | None:
        """What a report means, if any rule has a tag for the connection."""
        if connection.event is Event.CLOSED:
            # One that was opened under an earlier agent may still be known to the table, which knows its tag too.
            seen = connection.cookie in self._open
            tag = self._open.pop(connection.cookie) if seen else self._tag(connection)
            return None if tag is None else self._told(FlowState.END, connection, tag)
        tag = self._tag(connection)
        self._open[connection.cookie] = tag
        if len(self._open) > MAX_CONNECTIONS:
            # The report of its end was lost.
            self._open.popitem(last=False)
        return None if tag is None else self._told(FlowState.START, connection, tag)

    def _told(self, state: FlowState, connection: Connection, tag: Tag) -> FlowEvent:
        return _event(state, connection, connection.key if self._host is None else self._host.said(connection.key), tag)

    def _tag(self, connection: Connection) -> Tag | None:
        return self._tagger.match(self._candidate(connection.key))

    def _candidate(self, key: FlowKey) -> Candidate:
        """The connection as the rules look at it; the kernel is asked for more where one wants to know more."""
        if self._host is None or not self._asks_for_socket:
            return Candidate(key)
        try:
            found = self._host.find(key, details=False)
        except OSError as error:
            log.debug("%s: %s", key, error)
            found = None
        return Candidate(key) if found is None else Candidate(key, found.uid, found.cgroup)


def _event(state: FlowState, connection: Connection, key: FlowKey, tag: Tag) -> FlowEvent:
    moment, over = instant(connection), state is FlowState.END
    return FlowEvent(
        state=state,
        key=key,
        tag=tag,
        start_time=None if over else moment,
        end_time=moment if over else None,
        usage=usage_of(connection.sent, connection.received, is_source=True) if over else None,
        # Ends of ours never end what a storage has announced on the same connection.
        transfer_id=f"socket-{connection.cookie}",
        zone=zone(connection),
        extra={"skOps": details(connection)} if over else {},
    )


def create_sock_ops(settings: SockOpsSettings) -> SockOps:
    """Raises ConfigError for rules that no connection can meet."""
    return SockOps(settings, settings.rule, Rules(settings.rule))


def create_iperf3(settings: Iperf3Settings) -> SockOps:
    """Raises ConfigError for ports and tags that are none."""
    if not settings.tags:
        raise ConfigError("tags is empty: no connection would get one")
    turns = [_rules_for(choice, settings) for choice in settings.tags]
    return SockOps(settings, turns[0], Turns([Rules(rules) for rules in turns], settings.order))


def _rules_for(choice: TagChoice, settings: Iperf3Settings) -> list[Rule]:
    tag = {"experiment": choice.experiment, "activity": choice.activity}
    if settings.local_ports or settings.remote_ports:
        ends = [{"local_ports": settings.local_ports, "remote_ports": settings.remote_ports}]
    else:
        ends = [{"local_ports": settings.ports}, {"remote_ports": settings.ports}]
    return [msgspec.convert({**tag, **one}, Rule) for one in ends]


KIND = SourceKind("sock_ops", SockOpsSettings, create_sock_ops)
IPERF3 = SourceKind("iperf3", Iperf3Settings, create_iperf3)
