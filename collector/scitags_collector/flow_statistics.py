"""Transfers to figures: how many by experiment and activity over time, how long, how much, by whom. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from scitags_collector.transfers import Transfer
from scitags_core.tag import Tag

Key = TypeVar("Key")

BUCKETS_WANTED = 120
STEPS = (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
UNNAMED = "(not told)"


class Durations(msgspec.Struct, frozen=True):
    """Of transfers whose start and end were told, in seconds; quantiles are values that occurred (nearest rank)."""

    count: int
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    p90: float
    p99: float
    maximum: float


class ActivityRow(msgspec.Struct, frozen=True):
    """The transfers of one tag.

    at_once     the most that were under way at one moment
    unfinished  of which no end was told: each counts as under way from its start until it was last told of, and then
                for as long as the longest of the activity took
    octets      of those of which they were told; octets_untold is how many were not
    """

    tag: Tag
    flows: int
    at_once: int
    unfinished: int
    octets: int
    octets_untold: int
    by_fts: int
    durations: Durations | None


class ApplicationRow(msgspec.Struct, frozen=True):
    """The transfers of one application that FTS did not make; shares (0 to 1) are of all transfers, FTS' included."""

    application: str
    flows: int
    octets: int
    octets_untold: int
    share_of_flows: float
    share_of_octets: float | None
    experiments: dict[int, int]


class Series(msgspec.Struct, frozen=True):
    """Intervals of so many seconds; under_way has how many were, on average over the interval."""

    start: datetime
    seconds: float
    started: dict[Tag, list[int]]
    under_way: dict[Tag, list[float]]
    octets: dict[str | None, list[float]]  # by application, None for FTS; spread evenly over each transfer's time

    @property
    def intervals(self) -> int:
        """How many there are."""
        return max((len(row) for row in self.under_way.values()), default=0)


class Statistics(msgspec.Struct, frozen=True):
    """All of it.

    first, last   the earliest start, and the latest that was told of
    empty         flows that moved nothing, by their own word: connections that arrange, files that were not read
    """

    first: datetime
    last: datetime
    flows: int
    by_fts: int
    empty: int
    octets: int
    octets_by_fts: int
    activities: list[ActivityRow]
    applications: list[ApplicationRow]
    series: Series
    durations: dict[Tag, list[float]]  # each of them, sorted


def compute(ours: Sequence[Transfer], others: Sequence[Transfer], *, bucket: float | None = None) -> Statistics | None:
    """The figures of FTS' transfers and of the others, in intervals of so many seconds; None where there are none."""
    transfers = [*ours, *others]
    if not transfers:
        return None
    first = min(one.start for one in transfers)
    last = max(max(one.start, one.end or one.start) for one in transfers)
    durations = {
        tag: sorted(seconds for one in of_tag if (seconds := one.seconds) is not None)
        for tag, of_tag in _grouped(transfers, lambda one: one.tag).items()
    }
    octets = sum(one.octets or 0 for one in transfers)
    ends = {id(one): _end(one, durations[one.tag], last) for one in transfers}
    return Statistics(
        first=first,
        last=last,
        flows=len(transfers),
        by_fts=len(ours),
        empty=sum(one.octets == 0 for one in transfers),
        octets=octets,
        octets_by_fts=sum(one.octets or 0 for one in ours),
        activities=_activities(ours, transfers, durations, ends),
        applications=_applications(others, len(transfers), octets),
        series=_series(ours, others, ends, (first, last), bucket or _step((last - first).total_seconds())),
        durations={tag: found for tag, found in durations.items() if found},
    )


def _end(one: Transfer, durations: Sequence[float], last: datetime) -> datetime:
    """When it ended, as far as can be said."""
    if one.end is not None:
        return one.end
    longest = timedelta(seconds=durations[-1] if durations else 0.0)
    return min(last, (one.last_told or one.start) + longest)


def _activities(
    ours: Sequence[Transfer],
    transfers: Sequence[Transfer],
    durations: dict[Tag, list[float]],
    ends: dict[int, datetime],
) -> list[ActivityRow]:
    by_fts = {tag: len(found) for tag, found in _grouped(ours, lambda one: one.tag).items()}
    return [
        ActivityRow(
            tag=tag,
            flows=len(found),
            at_once=_most_at_once((one.start, ends[id(one)]) for one in found),
            unfinished=sum(one.end is None for one in found),
            octets=sum(one.octets or 0 for one in found),
            octets_untold=sum(one.octets is None for one in found),
            by_fts=by_fts.get(tag, 0),
            durations=_durations(durations[tag]),
        )
        for tag, found in sorted(_grouped(transfers, lambda one: one.tag).items())
    ]


def _applications(others: Sequence[Transfer], flows: int, octets: int) -> list[ApplicationRow]:
    rows = []
    for name, found in _grouped(others, lambda one: one.application or UNNAMED).items():
        own = sum(one.octets or 0 for one in found)
        experiments = {number: len(some) for number, some in _grouped(found, lambda one: one.tag.experiment).items()}
        untold = sum(one.octets is None for one in found)
        share = own / octets if octets else None
        rows.append(ApplicationRow(name, len(found), own, untold, len(found) / flows, share, experiments))
    return sorted(rows, key=lambda row: (-row.octets, -row.flows, row.application))


def _durations(found: Sequence[float]) -> Durations | None:
    """Of sorted values."""
    if not found:
        return None
    at = {share: found[max(0, math.ceil(share * len(found)) - 1)] for share in (0.25, 0.5, 0.75, 0.9, 0.99)}
    return Durations(len(found), found[0], at[0.25], at[0.5], at[0.75], at[0.9], at[0.99], found[-1])


def _most_at_once(spans: Iterable[tuple[datetime, datetime]]) -> int:
    changes = []
    for start, end in spans:
        # One that ends as another begins is not under way beside it; one of no length is under way once.
        changes += [(start, 1), (max(end, start + timedelta(microseconds=1)), -1)]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def _series(
    ours: Sequence[Transfer],
    others: Sequence[Transfer],
    ends: dict[int, datetime],
    time: tuple[datetime, datetime],
    seconds: float,
) -> Series:
    first, last = time
    count = int((last - first).total_seconds() / seconds) + 1
    series = Series(first, seconds, {}, {}, {})
    for transfers, is_fts in ((ours, True), (others, False)):
        for one in transfers:
            since = (one.start - first).total_seconds()
            until = max(since, (ends[id(one)] - first).total_seconds())
            name = None if is_fts else one.application or UNNAMED
            series.started.setdefault(one.tag, [0] * count)[min(int(since / seconds), count - 1)] += 1
            under_way = series.under_way.setdefault(one.tag, [0.0] * count)
            moved = series.octets.setdefault(name, [0.0] * count)
            total = one.octets or 0
            for number in range(int(since / seconds), min(int(until / seconds), count - 1) + 1):
                overlap = min(until, (number + 1) * seconds) - max(since, number * seconds)
                under_way[number] += overlap / seconds
                # One of no length moved all of it at once.
                moved[number] += total * overlap / (until - since) if until > since else total
    return series


def _step(seconds: float) -> float:
    return next((one for one in STEPS if seconds / one <= BUCKETS_WANTED), STEPS[-1])


def _grouped(transfers: Iterable[Transfer], by: Callable[[Transfer], Key]) -> dict[Key, list[Transfer]]:
    found: dict[Key, list[Transfer]] = {}
    for one in transfers:
        found.setdefault(by(one), []).append(one)
    return found
