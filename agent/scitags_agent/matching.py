"""Which connection a report means, when its 5-tuple is not that of a connection.

dCache's fireflies name the port of the client's connection to the door, not of the one to the pool that moves the
data; its start goes out before that connection is made; some reports give a port as 0. What holds of such a report is
its near end (address and port of this host), the far address, and the time: the connection meant is the one from there
to here that comes next.

    matcher = Matcher()
    await matcher.match(event)    the event with the connection's 5-tuple, or None
    await matcher.gone(keys)      those of the flows whose connections have gone

A start waits for its connection for a few seconds. We never guess: when starts with different tags could each mean a
connection, or one start any of two, the connection is in dispute, and is matched to nothing from then on.

A connection that was there before the start is meant only when none comes, when it is the only one in question, and
when it was idle or hardly used as the start came and moves data now: a client that uses its connection again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

import msgspec

from scitags_agent import tcp_info
from scitags_agent.connections import INFO, OPEN_STATES, Connection, Lookup, dump
from scitags_agent.local_address import is_local
from scitags_agent.presence import Presence, find_alive
from scitags_core.flow import UNKNOWN_PORT, FlowEvent, FlowKey, FlowState, Transport

WAIT_SECONDS = 5.0
# While something waits, so often at most, and for no more than this share of the time.
LOOK_SECONDS = 0.003
LOOK_SHARE = 0.1
# Whoever comes while others wait is worth an earlier look, but not for more than this share of the time.
EARLY_LOOK_SHARE = 0.3
# From a start until its client can have been sent to the pool, and have connected.
REDIRECT_SECONDS = 0.0015
# What came so shortly before we heard of a start can have come after it was sent: we may be behind.
YOUNG_SECONDS = 0.05
# After so long without a new connection, those that were there before are considered.
GRACE_SECONDS = 0.5
HARDLY_USED_OCTETS = 1 << 14
# With more ports in question than that, one look at everything costs less.
PORTS_ASKED_FOR = 4
MATCHES_REMEMBERED = 1 << 17
DISPUTES_REMEMBERED = 1 << 14
SOCKETS_AT_ONCE = 256

_MICROSECONDS_OF_AGES = 1 << 62
_FOREVER_AGO = float("-inf")
_Ports = tuple[Transport, int, int]  # near, far; one of them 0, which stands for any
_Options = dict[int, Connection]  # by cookie


class _Place(msgspec.Struct, frozen=True):
    """What is sure of a report: a connection from here to there is meant. far_port is 0 where near_port serves."""

    protocol: Transport
    near: str
    near_port: int
    far: str
    far_port: int
    is_source: bool  # whether the near end is the flow's source

    @property
    def ports(self) -> _Ports:
        return self.protocol, self.near_port, self.far_port

    def fits(self, connection: Connection) -> bool:
        return (
            connection.local == self.near
            and connection.remote == self.far
            and (not self.near_port or connection.local_port == self.near_port)
            and (not self.far_port or connection.remote_port == self.far_port)
        )

    def key_of(self, connection: Connection) -> FlowKey:
        return connection.key if self.is_source else connection.key.reversed()


class _AsItWas(msgspec.Struct, frozen=True):
    """A connection at some moment: octets of data, seconds in which some of ours were under way, and for how long
    none moved, in either direction and in one of them."""

    sent: int
    received: int
    busy: float
    idle: float
    half_idle: float

    @property
    def moved(self) -> int:
        return self.sent + self.received

    @property
    def is_young(self) -> bool:
        """Whether a start that has just been heard can mean it; the kernel takes a socket's birth for activity.

        Many octets are no sign of age where they went one way, in no longer than that: a fast link moves them before we
        look. While we have sent nothing, half_idle is the connection's age.
        """
        if self.half_idle > YOUNG_SECONDS:
            return False
        is_one_way = self.received <= HARDLY_USED_OCTETS and self.busy <= YOUNG_SECONDS
        return self.moved <= HARDLY_USED_OCTETS or is_one_way or not self.sent

    @property
    def is_unused(self) -> bool:
        """Whether nobody else seems to be using it."""
        return self.moved <= HARDLY_USED_OCTETS or self.idle >= GRACE_SECONDS


class _Waiting(msgspec.Struct, eq=False):
    """A start whose connection has not come yet."""

    event: FlowEvent
    place: _Place
    arrived: float
    found: asyncio.Future[FlowKey | None]
    acted_on: asyncio.Event
    before: dict[int, _AsItWas] | None = None  # by cookie; None until the first look
    is_prompt: bool = False  # its connection was not there yet at the first look
    ambiguous: bool = False  # a connection that it could mean is in dispute


class Matcher:
    """Matches reports to this host's connections. One for an agent; to be used in its event loop alone."""

    def __init__(self, *, wait: float = WAIT_SECONDS) -> None:
        """wait, in seconds: how long a start waits for its connection. Raises SockDiagError."""
        self._wait = wait
        self._lookup = Lookup()
        self._presence = Presence(self._lookup)
        self._waiting: list[_Waiting] = []
        self._looking: asyncio.Task[None] | None = None
        self._somebody_came = asyncio.Event()
        # When each connection was first seen, by our clock and by cookie, while something waited for its ports.
        self._sightings: dict[_Ports, dict[int, float]] = {}
        self._disputed: OrderedDict[int, None] = OrderedDict()
        self._claimed: Counter[int] = Counter()  # cookies of the connections of flows under way
        # What a report's 5-tuple stands for, the oldest first: dCache's pair by 5-tuple and order.
        self._matched: OrderedDict[FlowKey, deque[tuple[FlowKey, int]]] = OrderedDict()
        self._counters: Counter[str] = Counter(exact=0, matched=0, ambiguous=0, unmatched=0, elsewhere=0)

    async def close(self) -> None:
        """Let all that wait go unmatched, and look no more."""
        for one in self._waiting:
            _settle(one, None)
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        self._lookup.close()

    def counters(self) -> Mapping[str, int]:
        """Reports by what became of them, and what is remembered. The ends of starts that were matched do not count.

        exact         the 5-tuple was a connection's as it stood
        matched       another one's was found
        ambiguous     more than one would do
        unmatched     none came in time, or the report says too little
        elsewhere     neither end is at this host
        failed_looks  the kernel refused to tell
        """
        return {**self._counters, "waiting": len(self._waiting), "remembered": len(self._matched)}

    def is_exact(self, key: FlowKey, zone: str = "") -> bool:
        """Whether a 5-tuple is that of a connection of this host, at either end. Costs about 15 us."""
        return key.is_complete and find_alive(self._lookup, key, zone) is not None

    async def match(self, event: FlowEvent) -> FlowEvent | None:
        """The event with the 5-tuple of the connection that it means; None when that cannot be said.

        For reports whose far port may be missing or untrue: of one that is true and comes before its connection,
        another that comes meanwhile may be taken for it. A start may wait, an end no longer than its start. What is
        reported of one 5-tuple is answered in order, and stays in order when the caller acts on the answer before it
        awaits anything else. Raises SockDiagError.
        """
        if event.state is FlowState.END:
            return await self._match_end(event)
        known = self._matched.get(event.key)
        if event.state is FlowState.ONGOING and known:
            return msgspec.structs.replace(event, key=known[0][0])
        connection = find_alive(self._lookup, event.key, event.zone) if event.key.is_complete else None
        if connection is not None:
            self._counters["exact"] += 1
            self._remember(event.key, event.key, connection.cookie)
            return event
        place = _place(event.key)
        if place is None:
            self._count_out(event.key)
            return None
        return await self._wait_for(event, place)

    async def gone(self, flows: Collection[FlowKey]) -> set[FlowKey]:
        """Those of all flows under way whose connections have been there and are not any more (Presence.gone)."""
        return await self._presence.gone(flows)

    def have_seen(self, flows: Iterable[FlowKey]) -> None:
        """The connections of these flows have been there: an earlier agent knew. gone() tells when they have gone."""
        self._presence.have_seen(flows)

    @property
    def seen(self) -> Collection[FlowKey]:
        """The flows under way whose connections have been there."""
        return self._presence.seen

    # --- starts -------------------------------------------------------------------------------------

    async def _wait_for(self, event: FlowEvent, place: _Place) -> FlowEvent | None:
        loop = asyncio.get_running_loop()
        one = _Waiting(event, place, time.monotonic(), loop.create_future(), asyncio.Event())
        self._waiting.append(one)
        self._somebody_came.set()
        if self._looking is None or self._looking.done():
            self._looking = loop.create_task(self._look_while_waiting())
        try:
            key = await one.found
        finally:
            self._waiting.remove(one)
            one.acted_on.set()  # by those who wait for it after our caller, who goes on in this very step
        return None if key is None else msgspec.structs.replace(event, key=key)

    async def _look_while_waiting(self) -> None:
        while self._waiting:
            began = time.monotonic()
            self._somebody_came.clear()
            try:
                await self._look()
            except OSError:  # whoever waits is let go in time, and another look may succeed
                self._counters["failed_looks"] += 1
            now = time.monotonic()
            for one in self._waiting:
                if now - one.arrived >= self._wait:
                    self._give_up(one)
            early = (now - began) / EARLY_LOOK_SHARE
            await asyncio.sleep(early)
            with contextlib.suppress(TimeoutError):
                pause = max(LOOK_SECONDS, (now - began) / LOOK_SHARE) - early
                await asyncio.wait_for(self._somebody_came.wait(), pause)
        self._sightings.clear()  # what comes while nobody waits is not seen coming

    async def _look(self) -> None:
        """One look at the ports in question, and what follows from it."""
        waiting = list(self._waiting)
        asked = {one.place.ports for one in waiting}
        present = await self._present(asked)
        now = time.monotonic()
        self._sightings = {ports: self._sighted(ports, present[ports], now) for ports in asked}
        fitting = {
            place: {c.cookie: c for c in present[place.ports] if place.fits(c)}
            for place in {one.place for one in waiting}
        }
        for one in waiting:
            if one.before is None:
                one.is_prompt = _came_just_now(one.event)
                one.before = {cookie: _as_it_is(c) for cookie, c in fitting[one.place].items()}
        for place, connections in fitting.items():
            here = [one for one in waiting if one.place == place]
            # New connections first: what they leave may mean one that was there before.
            for choose in (self._new_ones, self._used_again):
                self._assign([(one, choose(one, connections)) for one in here if not one.found.done()])
            self._release(here, connections)

    async def _present(self, asked: set[_Ports]) -> dict[_Ports, list[Connection]]:
        """The open connections with these ports."""
        present: dict[_Ports, list[Connection]] = {ports: [] for ports in asked}
        if len(asked) <= PORTS_ASKED_FOR:
            for protocol, near_port, far_port in asked:
                found = dump(protocol, local_port=near_port, remote_port=far_port, details=True)
                present[protocol, near_port, far_port] = [one for one in found if one.state in OPEN_STATES]
                await asyncio.sleep(0)
            return present
        for protocol in {ports[0] for ports in asked}:
            for count, one in enumerate(dump(protocol, details=True), 1):
                for ports in ((protocol, one.local_port, 0), (protocol, 0, one.remote_port)):
                    if ports in present and one.state in OPEN_STATES:
                        present[ports].append(one)
                if count % SOCKETS_AT_ONCE == 0:
                    await asyncio.sleep(0)
        return present

    def _sighted(self, ports: _Ports, connections: list[Connection], now: float) -> dict[int, float]:
        """When each was first seen; at the first look at these ports only what is young counts as seen coming."""
        known = self._sightings.get(ports)
        if known is None:
            return {one.cookie: now if _as_it_is(one).is_young else _FOREVER_AGO for one in connections}
        return {one.cookie: known.get(one.cookie, now) for one in connections}

    def _new_ones(self, one: _Waiting, connections: _Options) -> _Options:
        seen = self._sightings[one.place.ports]
        since = one.arrived - YOUNG_SECONDS
        others = (one.before or {}) if one.is_prompt else {}
        free = self._free(connections)
        return {cookie: c for cookie, c in free.items() if seen[cookie] >= since and cookie not in others}

    def _used_again(self, one: _Waiting, connections: _Options) -> _Options:
        free = self._free(connections)
        if time.monotonic() - one.arrived < GRACE_SECONDS or len(free) != 1:
            return {}
        ((cookie, connection),) = free.items()
        was = (one.before or {}).get(cookie)
        return free if was is not None and was.is_unused and _as_it_is(connection).moved > was.moved else {}

    def _free(self, connections: _Options) -> _Options:
        return {
            cookie: one
            for cookie, one in connections.items()
            if cookie not in self._claimed and cookie not in self._disputed
        }

    def _assign(self, choices: list[tuple[_Waiting, _Options]]) -> None:
        """Give each start its connection, where there is no doubt."""
        for one, options in choices:
            own = self._free(options)  # others of this round may have taken some
            if not own:
                continue
            rivals = [other for other, theirs in choices if not other.found.done() and theirs.keys() & own.keys()]
            # As many starts as connections, all with the same tag: which is which makes no difference.
            if all(other.event.tag == one.event.tag for other in rivals) and len(own) <= len(rivals):
                connection = next(iter(own.values()))
                key = one.place.key_of(connection)
                self._counters["matched"] += 1
                self._remember(one.event.key, key, connection.cookie)
                _settle(one, key)
                continue
            for other in rivals:
                other.ambiguous = True
            self._dispute(own)

    def _dispute(self, connections: _Options) -> None:
        for cookie in connections:
            self._disputed[cookie] = None
            if len(self._disputed) > DISPUTES_REMEMBERED:
                self._disputed.popitem(last=False)

    def _release(self, waiting: list[_Waiting], connections: _Options) -> None:
        """Let those go whose connections have come, though which is whose cannot be said.

        Until then each start goes on waiting, as the next connection may be its own and not that of a later start.
        """
        stuck = [one for one in waiting if one.ambiguous and not one.found.done()]
        if len(stuck) <= len(connections.keys() & self._disputed.keys()):
            for one in stuck:
                self._give_up(one)

    def _give_up(self, one: _Waiting) -> None:
        if not one.found.done():
            self._counters["ambiguous" if one.ambiguous else "unmatched"] += 1
            _settle(one, None)

    # --- ends, and what is remembered ---------------------------------------------------------------

    async def _match_end(self, event: FlowEvent) -> FlowEvent | None:
        early = next((one for one in self._waiting if one.event.key == event.key), None)
        if early is not None and (early.found.done() or event.key not in self._matched):
            # It is over before its connection was found; or that was found just now, and has not been acted on.
            was_found = early.found.done()
            self._give_up(early)
            await early.acted_on.wait()
            if not was_found:
                return None
        known = self._matched.get(event.key)
        if known:
            key, cookie = known.popleft()
            self._release_claim(cookie)
            if not known:
                del self._matched[event.key]
            return msgspec.structs.replace(event, key=key)
        if self.is_exact(event.key, event.zone):
            return event
        self._count_out(event.key)
        return None

    def _remember(self, reported: FlowKey, key: FlowKey, cookie: int) -> None:
        self._matched.setdefault(reported, deque()).append((key, cookie))
        self._matched.move_to_end(reported)
        self._claimed[cookie] += 1
        while len(self._matched) > MATCHES_REMEMBERED:  # their ends were lost
            _, forgotten = self._matched.popitem(last=False)
            for _, old in forgotten:
                self._release_claim(old)

    def _release_claim(self, cookie: int) -> None:
        self._claimed[cookie] -= 1
        if not self._claimed[cookie]:
            del self._claimed[cookie]

    def _count_out(self, key: FlowKey) -> None:
        self._counters["unmatched" if is_local(key.src) or is_local(key.dst) else "elsewhere"] += 1


def _settle(one: _Waiting, key: FlowKey | None) -> None:
    if not one.found.done():
        one.found.set_result(key)


def _came_just_now(event: FlowEvent) -> bool:
    """Whether it was sent so lately that its client cannot have connected: what is there now is of others."""
    if event.current_time is None:
        return False
    return 0 <= (datetime.now(UTC) - event.current_time).total_seconds() <= REDIRECT_SECONDS


def _as_it_is(connection: Connection) -> _AsItWas:
    info = tcp_info.decode(connection.attributes().get(INFO, b""))
    if not info:
        return _AsItWas(0, 0, 0.0, 0.0, 0.0)
    idle = sorted((info["last_data_sent"] / 1000, info["last_data_recv"] / 1000))
    busy = info.get("busy_time", _MICROSECONDS_OF_AGES) / 1_000_000  # since Linux 4.10
    return _AsItWas(tcp_info.payload_sent(info), tcp_info.payload_received(info), busy, *idle)


def _place(key: FlowKey) -> _Place | None:
    """What a report can mean; None when neither end is here, or when the ports say too little.

    When both ends are here each connection has two sockets, of which one will do.
    """
    for near, is_source in ((key.reversed(), False), (key, True)):
        if not is_local(near.src):
            continue
        if near.src_port:
            return _Place(key.protocol, near.src, near.src_port, near.dst, UNKNOWN_PORT, is_source)
        if near.dst_port:
            return _Place(key.protocol, near.src, UNKNOWN_PORT, near.dst, near.dst_port, is_source)
    return None
