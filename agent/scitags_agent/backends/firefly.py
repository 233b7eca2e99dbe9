"""Fireflies: each change of a flow is told to the flow's destination, and to collectors.

The datagram is that of scitags_core.firefly and always meets the schema: the table of flows remembers the
start time that an `end` must repeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from scitags_core import firefly
from scitags_core.errors import ConfigError, InvalidValue, shown
from scitags_core.flow import PORT_MAX, FlowChange, FlowEvent
from scitags_core.roles import BackendKind

log = logging.getLogger(__name__)

APPLICATION = "scitags-agent"
SEND_BUFFER_OCTETS = 1 << 22
SEND_SECONDS = 1.0
RESOLVE_SECONDS = 300.0
RESOLVE_AGAIN_SECONDS = 10.0

Address = tuple[Any, ...]
Port = Annotated[int, msgspec.Meta(ge=1, le=PORT_MAX)]


class FireflySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where fireflies go.

    to_destination     to the flow's destination address, at destination_port
    collectors         "host", "host:port", "[IPv6]:port"; the port is 10514 unless given
    announce_unknown   also flows whose tag the storage could not read (experiment 0)
    max_octets         of one datagram; 1232 fits any IPv6 path
    """

    to_destination: bool = True
    destination_port: Port = firefly.PORT
    collectors: list[str] = []
    announce_unknown: bool = False
    max_octets: Annotated[int, msgspec.Meta(ge=600, le=firefly.MAX_DATAGRAM)] = firefly.MAX_UNFRAGMENTED


class Collector:
    """One collector by its name, and the address that the name had when it was last looked up."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.host, self.port = split_host_port(text)
        self.address: tuple[int, Address] | None = None

    async def resolve(self) -> None:
        """Look the name up; the last address stays when that fails. Raises OSError, UnicodeError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)
        family, _, _, _, address = found[0]
        self.address = (family, address)


class FireflyBackend:
    """The backend."""

    def __init__(self, settings: FireflySettings) -> None:
        self._settings = settings
        self._collectors = [Collector(text) for text in settings.collectors]
        self._sockets: dict[int, socket.socket] = {}
        self._resolver: asyncio.Task[None] | None = None
        self._counters: Counter[str] = Counter(sent=0, errors=0)
        self._host = socket.gethostname()
        self._complained: set[int | None] = set()

    async def start(self) -> None:
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):  # a host may have but one of the two
                sender = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_OCTETS)
                self._sockets[family] = sender
        if not self._sockets:
            raise ConfigError("this host has neither IPv4 nor IPv6 sockets")
        await self._resolve_all()
        if any(not is_address(collector.host) for collector in self._collectors):
            self._resolver = asyncio.create_task(self._keep_resolving())

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        now = datetime.now(UTC)
        for change in changes:
            event = change.event
            if event.is_unknown and not self._settings.announce_unknown:
                self._counters["unknown_tag"] += 1
                continue
            try:
                datagram = firefly.encode(
                    event, now=now, host=self._host, app=APPLICATION, max_octets=self._settings.max_octets
                )
            except InvalidValue as error:
                self._counters["not_expressible"] += 1
                self._complain(None, f"a flow cannot be announced: {error}")
                continue
            for family, address in self._targets(event):
                await self._send(datagram, family, address)

    async def close(self) -> None:
        if self._resolver is not None:
            self._resolver.cancel()
            await asyncio.gather(self._resolver, return_exceptions=True)
        for sender in self._sockets.values():
            sender.close()
        self._sockets.clear()

    def counters(self) -> Mapping[str, int]:
        return self._counters

    def _targets(self, event: FlowEvent) -> Iterable[tuple[int, Address]]:
        if self._settings.to_destination:
            key, port = event.key, self._settings.destination_port
            if key.is_ipv6:
                yield socket.AF_INET6, (key.dst, port, 0, _scope(event.zone))
            else:
                yield socket.AF_INET, (key.dst, port)
        for collector in self._collectors:
            if collector.address is not None:
                yield collector.address
            else:
                self._counters["collector_unresolved"] += 1

    async def _send(self, datagram: bytes, family: int, address: Address) -> None:
        sender = self._sockets.get(family)
        try:
            if sender is None:
                raise OSError(errno.EAFNOSUPPORT, "this host has no sockets of that address family")
            try:
                sender.sendto(datagram, address)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await asyncio.wait_for(loop.sock_sendto(sender, datagram, address), SEND_SECONDS)
        except (OSError, TimeoutError) as error:
            self._counters["errors"] += 1
            self._complain(getattr(error, "errno", None), f"a firefly to {address[0]} port {address[1]}: {error}")
            return
        self._counters["sent"] += 1

    def _complain(self, kind: int | None, text: str) -> None:
        """Say each kind of trouble once; the counters tell how often."""
        if kind not in self._complained:
            self._complained.add(kind)
            log.warning("%s (said once, counted from here)", text)

    async def _resolve_all(self) -> bool:
        complete = True
        for collector in self._collectors:
            try:
                await collector.resolve()
            except (OSError, UnicodeError) as error:  # the latter for a name that no DNS could hold
                complete = False
                log.warning("collector %s: %s", collector.text, error)
        return complete

    async def _keep_resolving(self) -> None:
        complete = all(collector.address for collector in self._collectors)
        while True:
            await asyncio.sleep(RESOLVE_SECONDS if complete else RESOLVE_AGAIN_SECONDS)
            complete = await self._resolve_all()


def split_host_port(text: str) -> tuple[str, int]:
    """Host and port of "host", "host:port", "[IPv6]:port" or a bare address. Raises ConfigError."""
    if is_address(text):
        return text, firefly.PORT
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(firefly.PORT)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= PORT_MAX or set(host) & set("[]"):
        raise ConfigError(f"collector {shown(text)} is no host:port or [IPv6]:port")
    return host, int(port)


def is_address(text: str) -> bool:
    """Whether the text is an IP address rather than a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _scope(zone: str) -> int:
    """The scope id for a zone index, 0 for none or one that this host does not have."""
    if not zone:
        return 0
    try:
        return int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    except OSError:
        return 0


KIND = BackendKind("firefly", FireflySettings, FireflyBackend)
