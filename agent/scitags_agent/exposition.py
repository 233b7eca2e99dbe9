"""The tally and the agent's status as Prometheus reads them. Imports prometheus_client: import it when it is asked for.

A page is made from values that do not change meanwhile, so that a thread can make it while the agent works.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from scitags_agent.tally import RTT_BOUNDS, Snapshot

ROW = ("experiment", "activity")
FLOW = ("protocol", "src", "src_port", "dst", "dst_port", *ROW)

Status = Mapping[str, Any]


class Page(msgspec.Struct, frozen=True):
    """What a scraper is sent."""

    content_type: str
    content: bytes


def page(snapshot: Snapshot, status: Status, accept: str) -> Page:
    """The page, in the format that the scraper's Accept header prefers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families([*traffic(snapshot), *health(status)]))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return Page(content_type, encode(registry))


def traffic(snapshot: Snapshot) -> Iterator[Metric]:
    """Transfers, octets, round-trip times and retransmissions, by experiment and activity."""
    under_way = GaugeMetricFamily("scitags_transfers", "Transfers under way.", labels=ROW)
    started = CounterMetricFamily("scitags_transfers_started", "Transfers that began.", labels=ROW)
    ended = CounterMetricFamily("scitags_transfers_ended", "Transfers that ended.", labels=ROW)
    octets = CounterMetricFamily(
        "scitags_octets", "Octets that transfers moved, as their source counts.", labels=(*ROW, "direction")
    )
    retransmissions = CounterMetricFamily("scitags_retransmissions", "TCP segments sent again.", labels=ROW)
    rtt = HistogramMetricFamily("scitags_rtt_seconds", "Smoothed round-trip times reported.", labels=ROW)
    for row, totals in snapshot.totals:
        under_way.add_metric(row, totals.under_way)
        started.add_metric(row, totals.started)
        ended.add_metric(row, totals.ended)
        octets.add_metric((*row, "sent"), totals.sent)
        octets.add_metric((*row, "received"), totals.received)
        retransmissions.add_metric(row, totals.retransmissions)
        bounds = [*(str(bound) for bound in RTT_BOUNDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(totals.rtt_counts), strict=True))
        rtt.add_metric(row, buckets, totals.rtt_sum)
    yield from (under_way, started, ended, octets, retransmissions, rtt)
    if snapshot.series or snapshot.without_series:
        yield from _flows(snapshot)


def _flows(snapshot: Snapshot) -> Iterator[Metric]:
    octets = CounterMetricFamily("scitags_flow_octets", "Octets of a connection.", labels=(*FLOW, "direction"))
    retransmissions = CounterMetricFamily("scitags_flow_retransmissions", "TCP segments sent again.", labels=FLOW)
    rtt = GaugeMetricFamily("scitags_flow_rtt_seconds", "Smoothed round-trip time.", labels=FLOW)
    for key, row, series in snapshot.series:
        labels = (key.protocol, key.src, str(key.src_port), key.dst, str(key.dst_port), *row)
        octets.add_metric((*labels, "sent"), series.sent)
        octets.add_metric((*labels, "received"), series.received)
        retransmissions.add_metric(labels, series.retransmissions)
        if series.rtt is not None:
            rtt.add_metric(labels, series.rtt)
    yield from (octets, retransmissions, rtt)
    yield GaugeMetricFamily(
        "scitags_transfers_without_series",
        "Transfers under way beyond those that have series of their own.",
        value=snapshot.without_series,
    )


def health(status: Status) -> Iterator[Metric]:
    """What the agent counts of itself.

    Whatever a status has is here: sources and backends by their names, and each number that has no place of its
    own under its path, as scitags_agent_status.
    """
    left = dict(status)
    if not left:
        return
    identity = {name: str(left.pop(name)) for name in ("version",) if name in left}
    yield InfoMetricFamily("scitags_agent", "The agent.", value=identity)
    uptime = left.pop("uptime_seconds", None)
    if uptime is not None:
        yield GaugeMetricFamily("scitags_agent_uptime_seconds", "Seconds since the agent started.", value=uptime)
    for part, label in (("sources", "source"), ("backends", "backend")):
        family = UnknownMetricFamily(
            f"scitags_agent_{label}", f"What each {label} counts, by counter.", labels=(label, "counter")
        )
        for name, counters in left.pop(part, {}).items():
            for path, number in _numbers(counters):
                family.add_metric((name, path), number)
        yield family
    absent = GaugeMetricFamily("scitags_agent_absent", "What is configured and could not start.", labels=("part",))
    for name in left.pop("absent", {}):
        absent.add_metric((name,), 1)
    yield absent
    rest = UnknownMetricFamily("scitags_agent_status", "The rest of the agent's status.", labels=("counter",))
    left.pop("pid", None)
    for path, number in _numbers(left):
        rest.add_metric((path,), number)
    yield rest


def _numbers(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a tree of mappings, by its path: "table.flows"."""
    for name, value in tree.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{path}.")
        elif isinstance(value, int | float):
            yield path, float(value)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
