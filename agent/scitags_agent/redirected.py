"""Reports of transfers whose far end is named as it was asked, and not as it was answered.

A dCache that pulls from another storage names that one's door. The data come from wherever the door has sent it: from a
pool with another address and port. What is true is its own port: that of the connection by which they come. Of what it
pushes the start names the connection to the door, and the end that by which the data went.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

import msgspec

from scitags_agent.assignment import Assignment
from scitags_agent.candidates import Place, place_of
from scitags_agent.connections import dump
from scitags_agent.host import Host
from scitags_agent.inet_diag import OPEN_STATES, Connection
from scitags_agent.matched import Matched
from scitags_agent.presence import find_alive
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag

# Ends may be lost: of so many doors and tags, so many starts each.
ASKED_REMEMBERED = 1 << 10
STARTS_REMEMBERED = 1 << 10
_ANYWHERE = ""

_Asked = tuple[str, int, str, str, Tag]


class Redirected:
    """Of one matcher. What such a report means stands when the report comes: nothing waits."""

    def __init__(self, host: Host, matched: Matched, assignment: Assignment, counters: Counter[str]) -> None:
        """Which connections are free, and what reports stand for, is the matcher's; counters as well."""
        self._host = host
        self._matched = matched
        self._assignment = assignment
        self._counters = counters
        # By reported 5-tuple, the oldest first: whether its connection goes elsewhere.
        self._starts: OrderedDict[_Asked, dict[FlowKey, bool]] = OrderedDict()

    def match(self, event: FlowEvent) -> FlowEvent | None:
        """As Matcher.match. The end of a start that was not matched has the 5-tuple of that. Raises SockDiagError."""
        if event.state is FlowState.END:
            return self._end(event)
        found = self._start(event)
        asked = _asked(event)
        starts = self._starts.setdefault(asked, {})
        starts.pop(event.key, None)
        starts[event.key] = found is not None and found.key.within(event.key.namespace) != event.key
        self._starts.move_to_end(asked)
        if len(starts) > STARTS_REMEMBERED:
            del starts[next(iter(starts))]
        if len(self._starts) > ASKED_REMEMBERED:
            self._starts.popitem(last=False)
        return found

    def _start(self, event: FlowEvent) -> FlowEvent | None:
        exact = find_alive(self._host, event.key, event.zone) if event.key.is_complete else None
        if exact is not None:
            self._counters["exact"] += 1
            key, cookie = event.key.within(exact.namespace), exact.cookie
        else:
            place = place_of(event.key, self._host)
            there = self._with_the_near_end_of(place) if place is not None else []
            if place is None or len(there) != 1 or not self._assignment.free((there[0].cookie,)):
                self._counters["unmatched" if place is not None else "elsewhere"] += 1
                return None
            self._counters["matched"] += 1
            key, cookie = place.told(there[0].key), there[0].cookie
        self._matched.add(event.key, key, cookie)
        return msgspec.structs.replace(event, key=key)

    def _with_the_near_end_of(self, place: Place) -> list[Connection]:
        """The open connections, wherever they go. The kernel picks those with the port."""
        anywhere = msgspec.structs.replace(place, far=_ANYWHERE)
        return [
            one
            for where in self._host.places
            for one in dump(place.protocol, local_port=place.near_port, details=False, place=where)
            if one.state in OPEN_STATES and anywhere.fits(one.key)
        ]

    def _end(self, event: FlowEvent) -> FlowEvent | None:
        starts = self._starts.get(_asked(event), {})
        reported: FlowKey | None = event.key
        if event.key not in starts and event.key not in self._matched:
            # What is pushed: its start has the connection to the door.
            pushed = (key for key, is_elsewhere in starts.items() if not is_elsewhere)
            reported = next(pushed, None) if event.is_reversed else None
        if reported is None:
            return None
        starts.pop(reported, None)
        return msgspec.structs.replace(event, key=self._matched.take(reported) or reported)


def _asked(event: FlowEvent) -> _Asked:
    """What start and end of a transfer have in common."""
    key = event.key
    return key.src, key.src_port, key.dst, event.application, event.tag
