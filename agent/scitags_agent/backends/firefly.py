"""Fireflies: each change of a flow is told to the flow's destination, and to collectors.

The datagram is that of scitags_core.firefly and always meets the schema: the table of flows remembers the
start time that an `end` must repeat.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated

import msgspec

from scitags_agent import stun
from scitags_agent.collectors import APPLICATION, Collector, is_address, split_host_port
from scitags_agent.outbox import MESSAGES, PAYLOAD_OCTETS, Outbox, pack_address, unpack_address
from scitags_core import firefly
from scitags_core.errors import ConfigError, FlowEventError, PeerDataError
from scitags_core.flow import PORT_MAX, FlowChange, FlowEvent, FlowKey, canonical_address
from scitags_core.roles import BackendKind, Inheritance

log = logging.getLogger(__name__)

RESOLVE_SECONDS = 300.0
RESOLVE_AGAIN_SECONDS = 10.0
STUN_AGAIN_SECONDS = 60.0
BURST_SECONDS = 0.1  # no more leaves at a moment than is allowed in that time
SENT_AT_ONCE = 256  # datagrams that are not worth another thread

Port = Annotated[int, msgspec.Meta(ge=1, le=PORT_MAX)]


class FireflySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where fireflies go, and what they say.

    to_destination     to the flow's destination address, at destination_port
    collectors         "host", "host:port", "[IPv6]:port"; the port is 10514 unless given
    announce_unknown   also flows whose tag the storage could not read (experiment 0)
    max_octets         of one datagram; 1232 fits any IPv6 path
    max_per_second     datagrams; more wait in this backend's queue. 0: no bound
    source             addresses of this host to send from, at most one of each family
    public_addresses   what is told instead of an address: {"10.0.0.5" = "192.0.2.5"}
    stun               "host" or "host:port" of a server that is asked for our public addresses, or a list: the first
                       that answers is believed
    """

    to_destination: bool = True
    destination_port: Port = firefly.PORT
    collectors: list[str] = []
    announce_unknown: bool = False
    max_octets: Annotated[int, msgspec.Meta(ge=600, le=firefly.MAX_DATAGRAM)] = firefly.MAX_UNFRAGMENTED
    max_per_second: Annotated[int, msgspec.Meta(ge=0)] = 0
    source: list[str] = []
    public_addresses: dict[str, str] = {}
    stun: str | list[str] = ""


class FireflyBackend:
    """The backend."""

    def __init__(self, settings: FireflySettings) -> None:
        """Raises ConfigError."""
        self._settings = settings
        self._collectors = [Collector(text) for text in settings.collectors]
        self._public = {_address(own): _address(public) for own, public in settings.public_addresses.items()}
        self._sources = [_address(source) for source in settings.source]
        servers = [settings.stun] if isinstance(settings.stun, str) else settings.stun
        self._stun = [split_host_port(server, stun.PORT) for server in servers if server]
        self._outbox: Outbox | None = None
        # One: datagrams leave in the order of the changes.
        self._sender = ThreadPoolExecutor(1, "firefly")
        self._sending: asyncio.Future[bool] | None = None
        self._done = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._counters: Counter[str] = Counter()
        self._host = socket.gethostname()
        self._complained: set[int | None] = set()
        self._next_free = 0.0

    async def start(self, inheritance: Inheritance) -> None:
        """Make the sockets, and send what an earlier agent was killed over. Raises OSError, ConfigError."""
        home = inheritance.directory
        self._outbox = Outbox(home / "outbox" if home is not None else None)
        self._outbox.open(self._sources)
        self._done = self._outbox.finish()
        await self._resolve_all()
        if any(not is_address(collector.host) for collector in self._collectors):
            self._tasks.append(asyncio.create_task(self._keep_resolving()))
        if self._stun:
            self._tasks.append(asyncio.create_task(self._learn_public_addresses()))

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        told, events = self._to_be_told(changes)
        bundle = firefly.Bundle(datetime.now(UTC), self._host, APPLICATION, self._settings.max_octets)
        datagrams: list[bytes] = []
        for datagram in bundle.encode_all(events):
            if isinstance(datagram, bytes):
                datagrams.append(datagram)
            else:
                del told[len(datagrams)]
                self._counters["not_expressible"] += 1
                self._complain(None, f"a flow cannot be announced: {datagram}")
        receivers = self._receivers(len(told))
        room = self._room(len(receivers))
        for first in range(0, len(told), room):
            await self._send(told[first : first + room], datagrams[first : first + room], receivers)

    def _to_be_told(self, changes: Sequence[FlowChange]) -> tuple[list[FlowChange], list[FlowEvent]]:
        """The changes that are announced, and of each the event as it is told."""
        done, announces_unknown = self._done, self._settings.announce_unknown
        told: list[FlowChange] = []
        events: list[FlowEvent] = []
        for change in changes:
            event = change.event
            if 0 < change.serial <= done:
                continue  # an earlier agent has sent it
            if not event.tag.experiment and not announces_unknown:
                self._counters["unknown_tag"] += 1
                continue
            if event.is_reversed:
                event = firefly.turned(event)
            if self._public:
                event = self._as_seen_from_outside(event)
            told.append(change)
            events.append(event)
        return told, events

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sent()
        self._sender.shutdown()
        if self._outbox is not None:
            self._outbox.close()

    def counters(self) -> Mapping[str, int]:
        outbox = self._outbox
        return {"sent": outbox.sent if outbox else 0, "errors": outbox.errors if outbox else 0, **self._counters}

    def _as_seen_from_outside(self, event: FlowEvent) -> FlowEvent:
        key = event.key
        if key.src not in self._public and key.dst not in self._public:
            return event
        src, dst = self._public.get(key.src, key.src), self._public.get(key.dst, key.dst)
        return msgspec.structs.replace(event, key=FlowKey(src, key.src_port, dst, key.dst_port, key.protocol))

    def _receivers(self, count: int) -> list[bytes]:
        """The addresses of the collectors that have one; count of fireflies go by those that have none."""
        found = [collector.address for collector in self._collectors if collector.address is not None]
        missing = len(self._collectors) - len(found)
        if missing:
            self._counters["collector_unresolved"] += missing * count
        return found

    def _room(self, receivers: int) -> int:
        """How many fireflies can be posted at once."""
        each = (self._settings.to_destination + receivers) or 1
        room = min(PAYLOAD_OCTETS // (2 * self._settings.max_octets), MESSAGES // each)
        if self._settings.max_per_second:
            room = min(room, int(self._settings.max_per_second * BURST_SECONDS) // each)
        return max(1, room)

    async def _send(self, told: Sequence[FlowChange], datagrams: Sequence[bytes], receivers: Sequence[bytes]) -> None:
        outbox = self._outbox
        letters: list[tuple[bytes, bytes]] = []
        if self._settings.to_destination:
            port = self._settings.destination_port
            letters = [
                (datagram, _packed(change.event.key.dst, port, change.event.zone))
                for change, datagram in zip(told, datagrams, strict=True)
            ]
        count = len(letters) + len(told) * len(receivers)
        if not count or outbox is None:
            return
        if self._settings.max_per_second:
            await self._pace(count)
        await self._sent()
        self._done = max(self._done, next((change.serial for change in reversed(told) if change.serial), 0))
        outbox.post(letters, datagrams if receivers else [], receivers, self._done)
        if count > SENT_AT_ONCE or not outbox.send(wait=0):
            # The next ones are made while these leave.
            self._sending = asyncio.get_running_loop().run_in_executor(self._sender, outbox.send)

    async def _sent(self) -> None:
        """Return when what was posted has been sent."""
        if self._sending is not None:
            await self._sending
            self._sending = None
        if self._outbox is not None and self._outbox.failures:
            self._tell_failures(self._outbox)

    async def _pace(self, count: int) -> None:
        now = time.monotonic()
        if self._next_free > now:
            await asyncio.sleep(self._next_free - now)
        self._next_free = max(self._next_free, now) + count / self._settings.max_per_second

    def _tell_failures(self, outbox: Outbox) -> None:
        names = {collector.address: collector.text for collector in self._collectors}
        for (address, error), number in outbox.failures.items():
            if address in names:
                self._counters[f"errors_to_{names[address]}"] += number
            text, port, _ = unpack_address(address)
            self._complain(error, f"a firefly to {text} port {port}: {os.strerror(error)}")
        outbox.failures.clear()

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

    async def _learn_public_addresses(self) -> None:
        """Ask until somebody answers: at boot an agent may be there before its network is."""
        is_said = False
        while not await self._ask_for_public_addresses():
            if not is_said:
                names = ", ".join(host for host, _ in self._stun)
                log.warning("no STUN server answers (%s): addresses are told as they are, until one does", names)
            is_said = True
            await asyncio.sleep(STUN_AGAIN_SECONDS)

    async def _ask_for_public_addresses(self) -> bool:
        """Ask for both families; whether there was an answer for any."""
        answers = 0
        for family in (socket.AF_INET6, socket.AF_INET):
            for host, port in self._stun:
                try:
                    own, public = await stun.discover(host, port, family)
                except (OSError, UnicodeError, PeerDataError) as error:
                    log.info("STUN server %s, %s: %s", host, family.name, error)
                    continue
                answers += 1
                if own != public:
                    log.info("%s is seen from outside as %s", own, public)
                    self._public.setdefault(own, public)
                break
        return answers > 0


def _address(text: str) -> str:
    try:
        return canonical_address(text)
    except FlowEventError as error:
        raise ConfigError(str(error)) from None


@lru_cache(maxsize=1 << 14)
def _packed(address: str, port: int, zone: str) -> bytes:
    return pack_address(address, port, _scope(zone))


def _scope(zone: str) -> int:
    """The scope id for a zone index, 0 for none or one that this host does not have."""
    if not zone:
        return 0
    try:
        return int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    except OSError:
        return 0


KIND = BackendKind("firefly", FireflySettings, FireflyBackend)
