"""Which connection a report means, when its 5-tuple is not that of a connection.

dCache's fireflies name the port of the client's connection to the door, not of the one to the pool that moves the
data; its start goes out before that connection is made; some reports give a port as 0. What holds of such a report is
its near end (address and port of this host), the far address, and the time: the connection meant is the one from there
to here that comes next.

    matcher = Matcher(host)
    await matcher.match(event)    the event with the connection's 5-tuple, or None
    await matcher.gone(keys)      those of the flows whose connections have gone

A start waits for its connection for a few seconds. We never guess: when starts with different tags could each mean a
connection, or one start any of two, the connection is in dispute, and is matched to nothing from then on.

The kernel tells of each connection as it comes to stand (scitags_agent.arrivals), and when a report was sent where its
source knows. What counts are those times, not when we get round to it: a start can mean what comes after it alone, and
the first of that. Where the kernel tells nothing, connections are looked for every few milliseconds.

While a start waits, backends that can are asked to mark its connection from its opening on. The kernel is quicker to do
that than we to hear of it: whether the connection was meant, the same rules decide afterwards.

A connection that was there before the start is meant only when none comes, when it is the only one in question, and
when it was idle or hardly used as the start came and moves data now: a client that uses its connection again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import msgspec

from scitags_agent.assignment import Assignment
from scitags_agent.candidates import GRACE_SECONDS, YOUNG_SECONDS, Place, as_it_is, place_of
from scitags_agent.expecting import Expect, Expecting
from scitags_agent.host import Host
from scitags_agent.inet_diag import Connection, SockDiagError
from scitags_agent.matched import Matched
from scitags_agent.newcomers import IsAnnounced, Newcomers
from scitags_agent.presence import Presence, find_alive
from scitags_agent.redirected import Redirected
from scitags_agent.sightings import Sightings
from scitags_agent.used_again import Kept, has_moved, is_used_again, kept
from scitags_agent.waiting import Options, Waiting, came_just_now, could_mean
from scitags_core.flow import FlowEvent, FlowKey, FlowState

WAIT_SECONDS = 5.0
# While something waits, so often at most, and for no more than this share of the time.
LOOK_SECONDS = 0.003
# So often where we are told of connections, and only look for one that is used again.
SELDOM_LOOK_SECONDS = 0.1
LOOK_SHARE = 0.1
# Whoever comes while others wait is worth an earlier look, but not for more than this share of the time.
EARLY_LOOK_SHARE = 0.3
# The event loop's turns from a datagram that is there to the start that waits: it is read, a task begins with it.
TURNS_TO_A_START = 3


class Matcher:
    """Matches reports to this host's connections. One for an agent; to be used in its event loop alone."""

    def __init__(
        self,
        host: Host,
        *,
        wait: float = WAIT_SECONDS,
        watch: bool = True,
        expect: Expect = lambda *_: (),
        is_announced: IsAnnounced = lambda *_: False,
    ) -> None:
        """Ready to match.

        host     where connections are; stays the caller's
        wait     seconds: how long a start waits for its connection
        watch    have the kernel tell of connections
        expect   has backends mark a connection to come, given its place, its tag, and from when to when it may have
                 been asked for (scitags_core.roles.ExpectsConnections)
        is_announced  whether somebody had told of exactly this connection at that time, before it came
        """
        self._wait = wait
        self._host = host
        self._may_watch = watch
        self._deciding: asyncio.Task[None] | None = None
        self._is_undecided = False
        self._presence = Presence(host)
        self._waiting: list[Waiting] = []
        self._looking: asyncio.Task[None] | None = None
        self._somebody_came = asyncio.Event()
        self._sightings = Sightings(host)
        self._matched = Matched()
        self._counters: Counter[str] = Counter(exact=0, matched=0, ambiguous=0, unmatched=0, elsewhere=0)
        self._assignment = Assignment(self._matched, self._counters)
        self._redirected = Redirected(host, self._matched, self._assignment, self._counters)
        self._newcomers = Newcomers(host, self._matched, self._assignment, is_announced)
        self._expecting = Expecting(self._newcomers, wait, expect)

    async def close(self) -> None:
        """Let all that wait go unmatched, and look no more."""
        for one in self._waiting:
            one.settle(None)
        for task in (self._looking, self._deciding):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._newcomers.close()

    def counters(self) -> Mapping[str, int]:
        """Reports by what became of them, and what is remembered. The ends of starts that were matched do not count.

        exact         the 5-tuple was a connection's as it stood
        matched       another one's was found
        ambiguous     more than one would do
        unmatched     none came in time, or the report says too little
        elsewhere     neither end is at this host
        failed_looks  the kernel refused to tell
        lost_reports  of connections that came, for which there was no room
        """
        lost = self._newcomers.lost
        return {
            **self._counters,
            "waiting": len(self._waiting),
            "remembered": len(self._matched),
            **({"lost_reports": lost} if lost else {}),
        }

    def is_exact(self, key: FlowKey, zone: str = "") -> bool:
        """Whether a 5-tuple is that of a connection of this host, at either end. Costs about 15 us."""
        return key.is_complete and find_alive(self._host, key, zone) is not None

    def begin_to_watch(self) -> None:
        """Have the kernel tell of connections from now on, where it can; else from the first start on that waits."""
        if not self._may_watch:
            return
        self._may_watch = False
        self._newcomers.watch(self._decide_soon)

    async def match(
        self, event: FlowEvent, *, sent: float | None = None, is_redirected: bool = False
    ) -> FlowEvent | None:
        """The event with the 5-tuple of the connection that it means; None when that cannot be said.

        sent is when it was sent, by time.monotonic, where the kernel has noted that. is_redirected: its far end may be
        untrue altogether, and its connection stands (scitags_agent.redirected).

        For reports whose far port may be missing or untrue: of one that is true and comes before its connection,
        another that comes meanwhile may be taken for it. A start may wait, an end no longer than its start. What is
        reported of one 5-tuple is answered in order, and stays in order when the caller acts on the answer before it
        awaits anything else. Raises SockDiagError.
        """
        if is_redirected and event.key.is_complete and event.state is not FlowState.ONGOING:
            told = self._redirected.match(event)
            if told is not None or event.state is FlowState.START:
                return told
        if event.state is FlowState.END:
            return await self._match_end(event)
        known = self._matched.oldest(event.key)
        if event.state is FlowState.ONGOING and known is not None:
            return msgspec.structs.replace(event, key=known)
        place = place_of(event.key, self._host)
        one = Waiting.begin(event, place, sent) if place is not None else None
        if one is not None:
            self._expecting.begin(one)
        try:
            connection = find_alive(self._host, event.key, event.zone) if event.key.is_complete else None
            if connection is not None:
                key = event.key.within(connection.namespace)
                self._counters["exact"] += 1
                self._matched.add(event.key, key, connection.cookie)
                return event if key is event.key else msgspec.structs.replace(event, key=key)
            if one is None:
                self._count_out(event.key)
                return None
            return await self._wait_for(one)
        finally:
            if one is not None:
                one.settle_expected()
                one.acted_on.set()  # by those who wait for it after our caller, who goes on in this very step

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

    async def _wait_for(self, one: Waiting) -> FlowEvent | None:
        again = self._begin_to_await_use(one)
        self._waiting.append(one)
        self._somebody_came.set()
        self.begin_to_watch()
        if self._newcomers.are_told_of:
            self._newcomers.catch_up()
            self._expecting.check(one)
            self._decide_soon()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_while_waiting())
        try:
            key = await one.found
        finally:
            self._waiting.remove(one)
            if again is not None:
                again.cancel()
        return None if key is None else msgspec.structs.replace(one.event, key=key)

    def _begin_to_await_use(self, one: Waiting) -> asyncio.Task[None] | None:
        """The connection of its client's last transfer may be used again (scitags_agent.used_again)."""
        last = self._matched.latest(one.event.key) if one.event.state is FlowState.START else None
        before = kept(self._host, one, *last) if last is not None else None
        if before is None:
            return None
        return asyncio.get_running_loop().create_task(self._await_use(one, before))

    async def _await_use(self, one: Waiting, before: Kept) -> None:
        def is_free() -> bool:
            rivals = (other.event.tag for other in self._waiting if other.place == one.place)
            is_alone = all(tag == one.event.tag for tag in rivals)
            return is_alone and bool(self._assignment.free((before.cookie,))) and not self._may_have_come(one)

        try:
            if await is_used_again(self._host, one, before, is_free) and not one.found.done():
                self._assignment.take(one, before.key, before.cookie)
        except SockDiagError:  # it goes on waiting for another
            self._counters["failed_looks"] += 1

    def _may_have_come(self, one: Waiting) -> bool:
        """Whether there is a new connection that it may mean, for all that is known; else one is given out in _look."""
        self._newcomers.catch_up()
        return self._newcomers.has_come(one, time.monotonic())

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
                    self._assignment.give_up(one)
            early = (now - began) / EARLY_LOOK_SHARE
            await asyncio.sleep(early)
            with contextlib.suppress(TimeoutError):
                often = SELDOM_LOOK_SECONDS if self._newcomers.are_told_of else LOOK_SECONDS
                pause = max(often, (now - began) / LOOK_SHARE) - early
                await asyncio.wait_for(self._somebody_came.wait(), pause)
        self._sightings.forget()  # what comes while nobody waits is not seen coming

    async def _look(self) -> None:
        """One look at the ports in question, and what follows from it."""
        waiting = list(self._waiting)
        asked = {one.place.ports for one in waiting}
        present = await self._sightings.look(asked)
        self._newcomers.catch_up()  # all that is present is there too, but for what was before we watched
        self._sightings.note(present, time.monotonic())
        fitting = {
            place: {c.cookie: c for c in present[place.ports] if place.fits(c.key)}
            for place in {one.place for one in waiting}
        }
        for one in waiting:
            if one.before is None:
                one.is_prompt = came_just_now(one.event)
                one.before = {cookie: as_it_is(c) for cookie, c in fitting[one.place].items()}
        for place, connections in fitting.items():
            here = [one for one in waiting if one.place == place]
            # New connections first: what they leave may mean one that was there before.
            for choose in (self._new_ones, self._used_again):
                self._assignment.assign([(one, choose(one, connections)) for one in here if not one.found.done()])
            self._assignment.release(here, connections.keys())

    def _new_ones(self, one: Waiting, connections: Mapping[int, Connection]) -> Options:
        """Those that have been seen coming; what the kernel has told of is dealt with by its time."""
        seen = self._sightings.of(one.place.ports)
        since = one.arrived - YOUNG_SECONDS
        others = (one.before or {}) if one.is_prompt else {}
        return {
            cookie: connections[cookie].key
            for cookie in self._assignment.free(connections)
            if seen[cookie] >= since and cookie not in others and cookie not in self._newcomers
        }

    def _used_again(self, one: Waiting, connections: Mapping[int, Connection]) -> Options:
        free = self._assignment.free(connections)
        if time.monotonic() - one.arrived < GRACE_SECONDS or len(free) != 1:
            return {}
        (cookie,) = free
        was = (one.before or {}).get(cookie)
        is_meant = was is not None and was.is_unused and as_it_is(connections[cookie]).moved > was.moved
        return {cookie: connections[cookie].key} if is_meant else {}

    # --- what the kernel tells of -------------------------------------------------------------------

    def _decide_soon(self) -> None:
        self._is_undecided = True
        if self._waiting and (self._deciding is None or self._deciding.done()):
            self._deciding = asyncio.get_running_loop().create_task(self._decide())

    async def _decide(self) -> None:
        while self._is_undecided:
            self._is_undecided = False
            now = time.monotonic()
            # Whatever was sent before now is heard before anything is decided about what came before now.
            for _ in range(TURNS_TO_A_START):
                await asyncio.sleep(0)
            for place in {one.place for one in self._waiting}:
                self._give_out(place, now)

    def _give_out(self, place: Place, until: float) -> None:
        """What came until then goes to the starts of a place, in the order in which it came."""
        here = [one for one in self._waiting if one.place == place]
        come = self._newcomers.at(place, until)
        fitting = [one for one in come if not self._newcomers.is_known_otherwise(one)]
        # With one tag it makes no difference which is which, but to the label that the kernel has given already.
        met = {cookie: one for one in here for cookie in one.met_by} if len(here) > 1 else {}
        for arrival in fitting:
            if self._assignment.free((arrival.cookie,)):
                free = set(self._assignment.free(one.cookie for one in fitting))
                unsure = [one for one in fitting if one.cookie in free]
                starts = sorted(could_mean(here, arrival), key=lambda one: one is not met.get(arrival.cookie))
                self._assignment.assign([(one, one.meant_by(arrival, unsure)) for one in starts])
        told = {one.cookie for one in come}
        self._assignment.release(here, told)
        for start in here:
            if not start.found.done():
                self._expecting.begin_again(start, told)

    # --- ends, and what is remembered ---------------------------------------------------------------

    async def _match_end(self, event: FlowEvent) -> FlowEvent | None:
        early = next((one for one in self._waiting if one.event.key == event.key), None)
        if early is not None and not early.found.done() and self._newcomers.are_told_of:
            # A short transfer is over as soon as its connection has come.
            self._newcomers.catch_up()
            self._decide_soon()
            if self._deciding is not None:
                await asyncio.wait((self._deciding, early.found), return_when=asyncio.FIRST_COMPLETED)
        if early is not None and (early.found.done() or event.key not in self._matched):
            # It is over before its connection was found; or that was found just now, and has not been acted on.
            was_found = early.found.done()
            self._assignment.give_up(early)
            await early.acted_on.wait()
            if not was_found:
                return None
        key = self._matched.take(event.key)
        if key is not None:
            return msgspec.structs.replace(event, key=key)
        if self.is_exact(event.key, event.zone):
            return event
        if not event.key.src_port or not event.key.dst_port:
            told = await self._match_end_alone(event)
            if told is not None:
                return told
        self._count_out(event.key)
        return None

    async def _match_end_alone(self, event: FlowEvent) -> FlowEvent | None:
        """The only connection by which its octets can have gone: dCache tells of what it pushes when that is over."""
        place = place_of(event.key, self._host)
        usage = event.usage
        if place is None or usage is None or not (usage.sent or usage.received):
            return None
        moved = usage.sent or 0, usage.received or 0
        sent, received = moved if place.is_source else moved[::-1]
        try:
            there = await self._sightings.open_ones(place.protocol, place.near_port, place.far_port)
        except SockDiagError:
            self._counters["failed_looks"] += 1
            return None
        fitting = {one.cookie: one.key for one in there if place.fits(one.key) and has_moved(one, sent, received)}
        if len(self._assignment.free(fitting)) != 1 or len(fitting) != 1:
            return None
        self._counters["matched"] += 1
        return msgspec.structs.replace(event, key=place.told(*fitting.values()))

    def _count_out(self, key: FlowKey) -> None:
        is_here = self._host.is_local(key.src, key.namespace) or self._host.is_local(key.dst, key.namespace)
        self._counters["unmatched" if is_here else "elsewhere"] += 1
