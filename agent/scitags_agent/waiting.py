"""A start that waits for its connection, and which of those that come it can mean."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Self

import msgspec

from scitags_agent.arrivals import Arrival
from scitags_agent.candidates import YOUNG_SECONDS, AsItWas, Place
from scitags_core.flow import FlowEvent, FlowKey
from scitags_core.roles import Expectation

# From a start until its client can have been sent to the pool, and have connected.
REDIRECT_SECONDS = 0.0015

Options = dict[int, FlowKey]  # the keys of connections, our end as the source, by cookie


class Waiting(msgspec.Struct, eq=False):
    """A start whose connection has not come yet. Times are in seconds, by time.monotonic.

    arrived     when we heard of it
    sent        no connection that came before it is meant
    is_timed    of what came after `sent` the first is meant
    found       its flow's key, once its connection has come; None when that cannot be said
    cookie      of that connection
    acted_on    set when whoever waits for `found` has gone on
    expected    what backends have prepared for its connection, since `since`
    before      connections by cookie, as they were at the first look; None until then
    is_prompt   its connection was not there yet at the first look
    ambiguous   a connection that it could mean is in dispute
    """

    event: FlowEvent
    place: Place
    arrived: float
    sent: float
    is_timed: bool
    found: asyncio.Future[FlowKey | None]
    acted_on: asyncio.Event
    cookie: int = 0
    expected: Sequence[Expectation] = ()
    since: float = 0.0
    before: dict[int, AsItWas] | None = None
    is_prompt: bool = False
    ambiguous: bool = False

    @classmethod
    def begin(cls, event: FlowEvent, place: Place, sent: float | None) -> Self:
        """sent is None where it is not known: then what came shortly before now may be meant."""
        now = time.monotonic()
        found: asyncio.Future[FlowKey | None] = asyncio.get_running_loop().create_future()
        since = now - YOUNG_SECONDS if sent is None else sent
        return cls(event, place, now, since, sent is not None, found, asyncio.Event())

    @property
    def can_have_come(self) -> bool:
        """Whether its connection can have been there when we heard of it."""
        return not self.is_timed or self.arrived - self.sent > REDIRECT_SECONDS

    @property
    def met_by(self) -> list[int]:
        """The cookies of the connections that have met what is expected for it."""
        return [cookie for cookie in (expected.met_by for expected in self.expected) if cookie]

    def settle(self, key: FlowKey | None, cookie: int = 0) -> None:
        """Its connection is found, or is not to be found; what comes first counts."""
        if not self.found.done():
            self.cookie = cookie
            self.found.set_result(key)

    def settle_expected(self) -> None:
        """Tell backends which connection was meant, once it is found; until then, that none is expected any more."""
        found = self.found.result() if self.found.done() and not self.found.cancelled() else None
        for expected in self.expected:
            expected.settle(self.cookie, found)
        self.expected = ()

    def meant_by(self, arrival: Arrival, free: Iterable[Arrival]) -> Options:
        """The arrival; every other as well where it is not known what came before the start was sent."""
        if self.is_timed:
            return {arrival.cookie: arrival.key}
        return {other.cookie: other.key for other in free if self.sent <= other.stood}


def could_mean(starts: Iterable[Waiting], arrival: Arrival) -> list[Waiting]:
    """Those that still wait and were sent in time. The round trip was measured once, and may have been a slow one."""
    waiting = [one for one in starts if not one.found.done()]
    in_time = [one for one in waiting if one.sent <= arrival.asked]
    return in_time or [one for one in waiting if one.sent <= arrival.stood]


def came_just_now(event: FlowEvent) -> bool:
    """Whether it was sent so lately that its client cannot have connected: what is there now is of others."""
    if event.current_time is None:
        return False
    return 0 <= (datetime.now(UTC) - event.current_time).total_seconds() <= REDIRECT_SECONDS
