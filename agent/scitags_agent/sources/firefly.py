"""Fireflies over UDP: what XRootD, EOS and dCache tell of their flows, pointed at the agent.

    xrootd.pmark ffdest firefly.agent        pool.firefly.destination = localhost:10514

A storage means its own connections: a flow of which neither end is this host is relayed, if that is asked for, and
otherwise only counted. The dialects differ (WIRE: section on fireflies): dCache names the client as the source whatever
the direction, with the port of its connection to the door, and its ends bear times that lie ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from scitags_agent.collectors import APPLICATION, split_host_port
from scitags_agent.local_address import is_local
from scitags_agent.relay import Relay
from scitags_agent.stamps import SO_TIMESTAMPNS, STAMP_ROOM, Notes, sent_at
from scitags_core import firefly
from scitags_core.errors import ConfigError, FireflyError, shown
from scitags_core.firefly import Firefly
from scitags_core.flow import FlowEvent, FlowState, Usage, canonical_address
from scitags_core.roles import EventSink, SourceKind
from scitags_core.tag import UNKNOWN, Tag

if TYPE_CHECKING:
    from scitags_agent.host import Host

log = logging.getLogger(__name__)

RECEIVE_OCTETS = 8 << 20
DATAGRAMS_AT_ONCE = 256
SO_RCVBUFFORCE = 33
RESOLVE_SECONDS = 300.0
RESOLVE_AGAIN_SECONDS = 10.0
FIRST_RESOLVE_SECONDS = 1.0  # for which what is heard waits at most
MATCHES_AT_ONCE = 4096
# dCache sends each firefly to its peer and to the agent, one right after the other.
COPIES_REMEMBERED = 64

_RESERVED = Tag(1, 0)

# What dCache calls third-party copies by HTTP: it names the other storage's door, which sends it elsewhere.
_PULLS_AND_PUSHES = frozenset({"remotehttpdatatransfer", "remotehttpsdatatransfer"})

Dialect = Literal["auto", "plain", "dcache"]


class FireflySourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where fireflies are heard, from whom, and what becomes of them.

    listen         "address:port" or "[address]:port"; the port is 10514 unless given
    allow          networks of the senders that are listened to; empty: this host's own addresses
    dialect        whose ways are put right: auto tells by the header who has sent it
    only_local     leave flows alone of which neither end is this host
    relay          collectors that each firefly is passed on to
    relay_as       unchanged, or normalised: as the schema has it, in one spelling, with the source as the supplier
    namespaces     network namespaces besides the agent's own whose addresses are this host's
    """

    listen: list[str] = msgspec.field(default_factory=lambda: ["[::1]:10514", "127.0.0.1:10514"])
    allow: list[str] = []
    dialect: Dialect = "auto"
    only_local: bool = True
    relay: list[str] = []
    relay_as: Literal["unchanged", "normalised"] = "unchanged"
    namespaces: list[str] = []


class FireflySource:
    """The source. One instance for each set of addresses."""

    def __init__(self, settings: FireflySourceSettings) -> None:
        """Raises ConfigError."""
        self._settings = settings
        self._addresses = [split_host_port(text) for text in settings.listen]
        if not self._addresses:
            raise ConfigError("listen is empty: no firefly would be heard")
        self._allowed = [_network(text) for text in settings.allow]
        self._relay = Relay(settings.relay, settings.relay_as)
        self._matching: set[asyncio.Task[None]] = set()
        self._this_host: Host | None = None
        self._heard_last: deque[bytes] = deque(maxlen=COPIES_REMEMBERED)

    async def run(self, sink: EventSink) -> None:
        """Receive until cancelled. Raises OSError when an address cannot be listened at."""
        loop = asyncio.get_running_loop()
        receivers: list[socket.socket] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self._relay.close)
            if self._settings.namespaces:
                from scitags_agent.host import Host  # noqa: PLC0415  # few agents need it

                self._this_host = Host(self._settings.namespaces)
                stack.callback(self._this_host.close)
            if self._settings.dialect == "dcache":
                sink.prepare_to_match()
            for host, port in self._addresses:
                receivers += [stack.enter_context(one) for one in await _listen(host, port)]
            complete = False
            # What comes meanwhile waits in the kernel, and is passed on like all others.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_RESOLVE_SECONDS):
                    complete = await self._relay.resolve()
            for receiver in receivers:
                loop.add_reader(receiver, self._receive, receiver, sink)
                stack.callback(loop.remove_reader, receiver)
            log.info("fireflies are heard at %s", ", ".join(self._settings.listen))
            while True:
                await asyncio.sleep(RESOLVE_SECONDS if complete else RESOLVE_AGAIN_SECONDS)
                complete = await self._relay.resolve()

    def _receive(self, receiver: socket.socket, sink: EventSink) -> None:
        """Take what is there, up to a bound so that others get their turn."""
        events: list[FlowEvent] = []
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                datagram, notes, _, sender = receiver.recvmsg(firefly.MAX_DATAGRAM, STAMP_ROOM)
            except BlockingIOError:
                break
            except OSError as error:
                sink.refuse(f"nothing could be received: {error.strerror}")
                break
            self._take(datagram, str(sender[0]), notes, events, sink)
        if events:
            sink.accept_many(events)

    def _take(self, datagram: bytes, sender: str, notes: Notes, events: list[FlowEvent], sink: EventSink) -> None:
        if not self._may_send(sender):
            sink.refuse(f"sender {shown(sender)} is not allowed")
            return
        try:
            found = firefly.decode(datagram)
        except FireflyError as error:
            sink.refuse(str(error))
            return
        app = found.header.app if found.header else ""
        if app == APPLICATION:
            sink.refuse("a firefly of this agent's own kind has come back: it is sent to a collector that is an agent")
            return
        is_dcache = self._settings.dialect == "dcache" or (self._settings.dialect == "auto" and app == "dCache")
        if is_dcache and self._is_copy(datagram):
            sink.refuse("dCache's copy for a client that is at this host: it has been heard already")
            return
        event = _as_dcache_means_it(found.event) if is_dcache else found.event
        if firefly.is_reversed(event):
            event = msgspec.structs.replace(event, is_reversed=True)
        if self._relay:
            if self._relay.comes_back(event):
                sink.refuse("a firefly that was passed on has come back: a collector of ours passes on to us")
                return
            self._relay.pass_on(datagram, Firefly(event, found.header), sink.count)
        if self._settings.only_local and not (self._is_local(event.key.src) or self._is_local(event.key.dst)):
            sink.refuse("neither end of the flow is this host")
            return
        if is_dcache:
            self._match_later(event, notes, sink)
        else:
            events.append(event)

    def _match_later(self, event: FlowEvent, notes: Notes, sink: EventSink) -> None:
        if len(self._matching) < MATCHES_AT_ONCE:
            task = asyncio.get_running_loop().create_task(_match(event, sent_at(notes), sink))
            self._matching.add(task)
            task.add_done_callback(self._matching.discard)
        else:
            sink.refuse("too many flows wait for their connections")

    def _is_copy(self, datagram: bytes) -> bool:
        """Whether it is there already: a client at loopback (a door that hands data on) has its copy sent to us too."""
        if datagram in self._heard_last:
            return True
        self._heard_last.append(datagram)
        return False

    def _may_send(self, sender: str) -> bool:
        address = canonical_address(sender)
        if not self._allowed:
            return self._is_local(address) or (self._this_host is not None and self._this_host.has_just_got(address))
        return any(ipaddress.ip_address(address) in network for network in self._allowed)

    def _is_local(self, address: str) -> bool:
        return is_local(address) if self._this_host is None else self._this_host.is_local(address)


def _as_dcache_means_it(event: FlowEvent) -> FlowEvent:
    """dCache counts as its pool sees it, which is the destination; and its end gives the end as the start.

    It takes 64 for a tag, which is reserved and nobody's: whoever has sent that has sent no tag that can be read.
    """
    if event.tag == _RESERVED:
        event = msgspec.structs.replace(event, tag=UNKNOWN)
    usage = event.usage
    if usage is not None:
        usage = Usage(received=usage.sent, sent=usage.received)
    if event.state is not FlowState.END:
        return msgspec.structs.replace(event, usage=usage)
    latest = event.current_time or datetime.now(UTC)
    end_time = min(event.end_time, latest) if event.end_time is not None else latest
    start_time = None
    if not event.key.is_complete and event.start_time is not None and event.end_time is not None:
        # What it pushes has no start: by how far the end lies ahead is how long it took.
        start_time = end_time - (event.end_time - event.start_time)
    return msgspec.structs.replace(event, usage=usage, start_time=start_time, end_time=end_time)


async def _match(event: FlowEvent, sent: float | None, sink: EventSink) -> None:
    """Accept an event for the connection that it means; as it is, where that cannot be said."""
    found = await sink.match(event, sent=sent, is_redirected=event.application in _PULLS_AND_PUSHES)
    if found is None:
        # Without its ports it cannot be announced by itself.
        found = msgspec.structs.replace(event, start_time=None) if event.state is FlowState.END else event
    sink.accept(found)


async def _listen(host: str, port: int) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    receivers: list[socket.socket] = []
    for family, _, _, _, address in found:
        receiver = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        receivers.append(receiver)
        if family == socket.AF_INET6:
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with contextlib.suppress(OSError):
            receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # Without the right to more, the kernel gives as much as it allows everybody.
        for option in (SO_RCVBUFFORCE, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                receiver.setsockopt(socket.SOL_SOCKET, option, RECEIVE_OCTETS)
                break
        try:
            receiver.bind(address)
        except OSError as error:
            for one in receivers:
                one.close()
            raise OSError(error.errno, f"{host} port {port}: {error.strerror}") from None
    return receivers


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ConfigError(f"allow: {shown(text)} is no network such as '192.0.2.0/24'") from None


KIND = SourceKind("firefly", FireflySourceSettings, FireflySource)
