"""What is known of the traffic of each experiment and activity, added up from the changes of flows. Pure.

Names are those of the registry, and "unknown" for what it does not list, so that there are never more rows
than the registry has activities, and one more for each experiment.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from scitags_agent.reported import Reported, TransferName
from scitags_agent.tcp_facts import NOTHING, tcp_facts
from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.registry import Registry
from scitags_core.tag import Tag

UNKNOWN_NAME = "unknown"
# Seconds. From a campus to the other side of the planet; what is slower is in the last, open bucket.
RTT_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


class Row(NamedTuple):
    """Experiment and activity, by name."""

    experiment: str
    activity: str


class Totals(msgspec.Struct):
    """One row. Octets as the flow's source counts them, retransmissions in segments, times in seconds."""

    under_way: int = 0
    started: int = 0
    ended: int = 0
    sent: int = 0
    received: int = 0
    retransmissions: int = 0
    rtt_sum: float = 0.0
    # How many were seen in each bucket, the open one last.
    rtt_counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(RTT_BOUNDS) + 1))


class Series(msgspec.Struct):
    """One 5-tuple's traffic in one row, while a transfer uses it."""

    users: int = 0
    sent: int = 0
    received: int = 0
    retransmissions: int = 0
    rtt: float | None = None


class _Transfer(msgspec.Struct):
    """What a transfer under way last reported: reports are totals, so only what came since then is added."""

    row: Row
    series: Series | None
    sent: int = 0
    received: int = 0
    retransmissions: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """The tally at a moment, which no later change touches.

    without_series   transfers under way that have no series of their own, though some were asked for
    """

    totals: list[tuple[Row, Totals]]
    series: list[tuple[FlowKey, Row, Series]]
    without_series: int


class Tally:
    """Takes every change once.

    max_series      5-tuples that have numbers of their own at a time: the first ones, as places become free
    max_transfers   transfers whose reports are remembered; of those beyond, only beginning and end are counted
    """

    def __init__(self, registry: Registry, *, max_series: int = 0, max_transfers: int = 1_000_000) -> None:
        self._registry = registry
        self._max_series = max_series
        self._max_transfers = max_transfers
        self._rows: dict[Tag, Row] = {}
        self._totals: dict[Row, Totals] = {}
        self._transfers: dict[TransferName, _Transfer] = {}
        self._series: dict[tuple[FlowKey, Row], Series] = {}
        self._without_series = 0

    def add(self, change: FlowChange) -> None:
        """Take one change."""
        event = change.event
        row = self._rows.get(event.tag) or self._row(event.tag)
        totals = self._totals[row]
        # The table repeats the start time in whatever it says of a transfer, so both together name it.
        name = (event.key, event.transfer_id, event.start_time)
        transfer = self._transfers.get(name)
        if event.state is FlowState.END:
            totals.ended += 1
            if event.usage is not None or event.extra:
                self._report(event, totals, transfer or _Transfer(row, None))
            if transfer is not None:
                del self._transfers[name]
                totals.under_way -= 1
                self._release(event.key, transfer)
            return
        if transfer is None:
            totals.started += 1
            if len(self._transfers) >= self._max_transfers:
                return
            totals.under_way += 1
            transfer = self._transfers[name] = _Transfer(row, self._series_for(event.key, row))
        if event.usage is not None or event.extra:
            self._report(event, totals, transfer)

    def adopt(self, change: FlowChange, reported: Reported | None = None) -> None:
        """Take a transfer that an earlier agent saw begin: it is under way, but did not start here.

        reported is what that agent has counted of it.
        """
        self.add(change)
        self._totals[self._rows[change.event.tag]].started -= 1
        transfer = self._transfers.get((change.event.key, change.event.transfer_id, change.event.start_time))
        if transfer is not None and reported is not None:
            transfer.sent, transfer.received = reported.sent, reported.received
            transfer.retransmissions = reported.retransmissions

    def reported(self, names: Iterable[TransferName] | None = None) -> Iterator[Reported]:
        """What transfers under way, all or those of these names, have reported so far, where it is anything."""
        for name in list(self._transfers) if names is None else names:
            one = self._transfers.get(name)
            if one is not None and (one.sent or one.received or one.retransmissions):
                yield Reported(*name, one.sent, one.received, one.retransmissions)

    def snapshot(self) -> Snapshot:
        """A copy, to be shown at leisure by another thread."""
        return Snapshot(
            [
                (row, msgspec.structs.replace(totals, rtt_counts=list(totals.rtt_counts)))
                for row, totals in self._totals.items()
            ],
            [(key, row, msgspec.structs.replace(series)) for (key, row), series in self._series.items()],
            self._without_series,
        )

    def _row(self, tag: Tag) -> Row:
        names = self._registry.names(tag)
        row = self._rows[tag] = Row(names.experiment or UNKNOWN_NAME, names.activity or UNKNOWN_NAME)
        self._totals.setdefault(row, Totals())
        return row

    def _series_for(self, key: FlowKey, row: Row) -> Series | None:
        if not self._max_series:
            return None
        series = self._series.get((key, row))
        if series is None:
            if len(self._series) >= self._max_series:
                self._without_series += 1
                return None
            series = self._series[key, row] = Series()
        series.users += 1
        return series

    def _release(self, key: FlowKey, transfer: _Transfer) -> None:
        series = transfer.series
        if series is None:
            self._without_series -= bool(self._max_series)
            return
        series.users -= 1
        if not series.users:
            del self._series[key, transfer.row]

    def _report(self, event: FlowEvent, totals: Totals, transfer: _Transfer) -> None:
        sent = received = retransmissions = 0
        if event.usage is not None:
            sent = max(0, (event.usage.sent or 0) - transfer.sent)
            received = max(0, (event.usage.received or 0) - transfer.received)
        facts = tcp_facts(event.extra) if event.extra else NOTHING
        if facts.retransmissions is not None:
            retransmissions = max(0, facts.retransmissions - transfer.retransmissions)
        if facts.rtt is not None:
            totals.rtt_sum += facts.rtt
            totals.rtt_counts[bisect_left(RTT_BOUNDS, facts.rtt)] += 1
        for one in (totals, transfer, transfer.series):
            if one is not None:
                one.sent += sent
                one.received += received
                one.retransmissions += retransmissions
        if transfer.series is not None and facts.rtt is not None:
            transfer.series.rtt = facts.rtt
