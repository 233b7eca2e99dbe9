"""Starts and ends put together: what was transferred, from when to when, by which application. Pure.

Storages tell of a transfer in pieces, both its ends may tell, and copies of what they tell go to several places.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec

from scitags_collector.flow_files import Told
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag

COPIES_REMEMBERED = 100_000
# Two reports of one transfer do not differ by more than that, or by half of its time.
SAME_SECONDS = 1.0
LOOKED_BACK = 64  # transfers on the same connection


class Transfer(msgspec.Struct):
    """One transfer, or as much of it as was told: what the field calls a flow.

    start        UTC; that of the end where nothing else was told
    end          None where none was told
    last_told    when it was last told to be under way
    octets       that the data's source sent; None where nobody said
    is_whole     start and end were both told, so that it has a duration
    reporters    who told of it
    also         other names of the application, by other reporters
    """

    key: FlowKey
    tag: Tag
    start: datetime
    end: datetime | None = None
    last_told: datetime | None = None
    application: str = ""
    octets: int | None = None
    is_whole: bool = False
    reporters: tuple[str, ...] = ()
    transfer_id: str = ""
    also: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """How long it took; None where that was not told."""
        return (self.end - self.start).total_seconds() if self.end and self.is_whole else None


class Assembly:
    """Events in the order in which they were written down go in, transfers come out.

    copies    reports that came more than once: fireflies go to the destination and to collectors
    timeless  reports of which no time was told, and which are left out
    """

    def __init__(self) -> None:
        self.copies = 0
        self.timeless = 0
        self._open: dict[tuple[str, FlowKey, Tag, str], list[Transfer]] = {}
        self._found: list[Transfer] = []
        self._recent: set[tuple[object, ...]] = set()
        self._before: set[tuple[object, ...]] = set()  # what was recent until there were too many

    def add(self, told: Told) -> None:
        """Take an event."""
        event = told.event
        if self._is_copy(told):
            self.copies += 1
            return
        place = (told.reporter, event.key, event.tag, event.transfer_id)
        if event.state is FlowState.START:
            self._begin(place, told)
        elif event.state is FlowState.END:
            self._end(place, told)
        elif place in self._open:
            self._open[place][-1].last_told = _utc(event.current_time or told.seen)
        else:  # one that began before anybody listened
            self._begin(place, told)

    def transfers(self) -> list[Transfer]:
        """What there is by now, by their beginnings; what both ends of a connection told of is there once."""
        return merged(self._found)

    def _is_copy(self, told: Told) -> bool:
        event = told.event
        moment = event.current_time or told.seen
        if moment is None:
            return False
        mark = (told.reporter, event.key, event.tag, event.state, event.transfer_id, event.start_time, moment)
        if mark in self._recent or mark in self._before:
            return True
        if len(self._recent) >= COPIES_REMEMBERED:
            self._before, self._recent = self._recent, set()
        self._recent.add(mark)
        return False

    def _begin(self, place: tuple[str, FlowKey, Tag, str], told: Told) -> None:
        event = told.event
        start = _utc(event.start_time or event.current_time or told.seen)
        if start is None:
            self.timeless += 1
            return
        made = Transfer(event.key, event.tag, start, reporters=(told.reporter,), transfer_id=event.transfer_id)
        made.application, made.octets = event.application, _octets(event)
        self._open.setdefault(place, []).append(made)
        self._found.append(made)

    def _end(self, place: tuple[str, FlowKey, Tag, str], told: Told) -> None:
        event = told.event
        own, now = _utc(event.end_time), _utc(event.current_time or told.seen)
        waiting = self._open.get(place)
        if waiting:
            began = _utc(event.start_time)
            one = next((transfer for transfer in waiting if transfer.start == began), waiting[0])
            waiting.remove(one)
            if not waiting:
                del self._open[place]
            # Nothing ends after it was said to have ended: dCache adds the duration to the end.
            end = min((moment for moment in (own, now) if moment), default=one.start)
            one.end, one.is_whole = max(end, one.start), bool(own or now)
        else:
            start, last = _utc(event.start_time), own or now
            moment = start or last
            if moment is None:
                self.timeless += 1
                return
            one = Transfer(event.key, event.tag, moment, last or moment, reporters=(told.reporter,))
            one.is_whole = start is not None and last is not None and last >= start
            self._found.append(one)
        one.application = event.application or one.application
        octets = _octets(event)
        one.octets = one.octets if octets is None else octets


def merged(transfers: Iterable[Transfer]) -> list[Transfer]:
    """The transfers, those of which several reporters told made one."""
    found: list[Transfer] = []
    by_connection: dict[tuple[FlowKey, Tag], list[Transfer]] = {}
    for one in sorted(transfers, key=lambda transfer: transfer.start):
        earlier = by_connection.setdefault((min(one.key, one.key.reversed()), one.tag), [])
        same = next((other for other in earlier[-LOOKED_BACK:] if _are_one(other, one)), None)
        if same is None:
            earlier.append(one)
            found.append(one)
            continue
        same.reporters += one.reporters
        if one.application not in ("", same.application):
            if same.application:
                same.also += (one.application,)
            else:
                same.application = one.application
        same.octets = one.octets if same.octets is None else same.octets
        if one.is_whole and not same.is_whole:
            same.start, same.end, same.is_whole = one.start, one.end, True
    return found


def _are_one(one: Transfer, other: Transfer) -> bool:
    """Whether two reports by different reporters are of one transfer: the same connection and tag are given."""
    if set(one.reporters) & set(other.reporters):
        return False
    if one.end is None or other.end is None:
        return abs(one.start - other.start) <= timedelta(seconds=SAME_SECONDS)
    overlap = (min(one.end, other.end) - max(one.start, other.start)).total_seconds()
    shorter = min((each.end - each.start).total_seconds() for each in (one, other) if each.end)
    near = abs((one.start - other.start).total_seconds()) <= SAME_SECONDS
    return overlap > shorter / 2 or (near and overlap >= -SAME_SECONDS)


def _octets(event: FlowEvent) -> int | None:
    """What was moved. Reporters do not agree on which end is the source; data flow in one direction of the two."""
    if event.usage is None:
        return None
    told = [count for count in (event.usage.sent, event.usage.received) if count is not None]
    return max(told, default=None)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
