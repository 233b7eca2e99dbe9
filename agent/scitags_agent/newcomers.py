"""Connections that the kernel has told of, as starts that wait can mean them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from scitags_agent.arrivals import Arrival, Arrivals
from scitags_agent.assignment import Assignment
from scitags_agent.bpf.connections import ConnectionsUnavailable
from scitags_agent.candidates import Place
from scitags_agent.host import Host
from scitags_agent.matched import Matched
from scitags_agent.waiting import Waiting
from scitags_core.flow import FlowKey

log = logging.getLogger(__name__)

IsAnnounced = Callable[[FlowKey, float], bool]


class Newcomers:
    """Of one matcher; none, until watch() has the kernel tell of them. To be used in one event loop alone."""

    def __init__(self, host: Host, matched: Matched, assignment: Assignment, is_announced: IsAnnounced) -> None:
        """is_announced tells whether somebody had told of exactly this connection at that time, before it came."""
        self._host = host
        self._matched = matched
        self._assignment = assignment
        self._is_announced = is_announced
        self._arrivals: Arrivals | None = None

    def watch(self, heard: Callable[[], None]) -> None:
        """Have the kernel tell from now on, where it can; heard is called when any has come."""
        try:
            self._arrivals = Arrivals(heard, self._host)
        except ConnectionsUnavailable as error:
            log.info("connections that reports mean are looked for, as the kernel tells of none: %s", error)

    def close(self) -> None:
        """Watch no more."""
        if self._arrivals is not None:
            self._arrivals.close()

    @property
    def are_told_of(self) -> bool:
        """Whether the kernel tells."""
        return self._arrivals is not None

    @property
    def lost(self) -> int:
        """Of how many there was no room to tell."""
        return self._arrivals.lost if self._arrivals is not None else 0

    def __contains__(self, cookie: object) -> bool:
        return self._arrivals is not None and cookie in self._arrivals

    def catch_up(self) -> None:
        """Take what the kernel has told until now."""
        if self._arrivals is not None:
            self._arrivals.catch_up()

    def at(self, place: Place, until: float) -> list[Arrival]:
        """What fits a place and came until then, the oldest first."""
        told: Iterable[Arrival] = self._arrivals.between(place.near, place.far) if self._arrivals is not None else ()
        return [one for one in told if one.stood <= until and place.fits(one.key)]

    def is_known_otherwise(self, arrival: Arrival) -> bool:
        """Whether it was told of by its true 5-tuple before it came; one that a report stands for may be an earlier."""
        key = arrival.key
        return self._is_announced(key, arrival.before) and not self._matched.has_stood_for(key)

    def has_come(self, one: Waiting, until: float) -> bool:
        """Whether something that it may mean came until then, and has not been given to anybody."""
        return any(
            one.sent <= arrival.stood
            and self._assignment.free((arrival.cookie,))
            and not self.is_known_otherwise(arrival)
            for arrival in self.at(one.place, until)
        )
