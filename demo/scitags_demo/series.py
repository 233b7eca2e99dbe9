"""Traffic by tag over time, as the picture shows it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from scitags_core.tag import Tag
from scitags_demo.observer import Flow, Observation

_BITS_IN_MBIT = 1e6


class Series(msgspec.Struct, frozen=True):
    """Mbit/s of each tag in intervals of so many seconds, the first of which begins at 0.

    by_label    whether tags were read from flow labels, or only from fireflies
    """

    seconds: float
    rates: dict[Tag | None, list[float]]
    by_label: bool

    @property
    def intervals(self) -> int:
        return max((len(rates) for rates in self.rates.values()), default=0)

    def megabytes(self, tag: Tag | None) -> float:
        """What a tag moved in all."""
        return sum(self.rates[tag]) * self.seconds / 8


def from_labels(observation: Observation) -> Series:
    """What the observer made of each packet's label."""
    timeline = observation.timeline
    if not timeline.octets:
        return Series(timeline.seconds, {}, by_label=True)
    first, last = min(timeline.octets), max(timeline.octets)
    count = round((last - first) / timeline.seconds) + 1
    rates: dict[Tag | None, list[float]] = {}
    for time, parts in timeline.octets.items():
        position = round((time - first) / timeline.seconds)
        for tag, octets in parts.items():
            rates.setdefault(tag, [0.0] * count)[position] += _rate(octets, timeline.seconds)
    return Series(timeline.seconds, rates, by_label=True)


def from_fireflies(observation: Observation) -> Series:
    """Where labels say nothing: each connection's octets, spread evenly over the time that it was seen.

    Its tag is the one that was announced first.
    """
    seconds = observation.timeline.seconds
    flows = list(observation.flows.values())
    if not flows:
        return Series(seconds, {}, by_label=False)
    first = min(flow.first for flow in flows)
    count = int((max(flow.last for flow in flows) - first) / seconds) + 1
    announced: dict[object, Tag] = {}
    for one in observation.announcements:
        for key in (one.key, one.key.reversed()):
            announced.setdefault(key, one.tag)
    rates: dict[Tag | None, list[float]] = {}
    for flow in flows:
        row = rates.setdefault(announced.get(flow.key), [0.0] * count)
        for position, octets in _spread(flow, first, seconds).items():
            row[position] += _rate(octets, seconds)
    return Series(seconds, rates, by_label=False)


def _spread(flow: Flow, first: float, seconds: float) -> Mapping[int, float]:
    """A flow's octets by interval."""
    since, until = flow.first - first, max(flow.last - first, flow.first - first + 1e-6)
    found: dict[int, float] = {}
    for position in range(int(since / seconds), int((flow.last - first) / seconds) + 1):
        overlap = min(until, (position + 1) * seconds) - max(since, position * seconds)
        found[position] = flow.octets * max(0.0, overlap) / (until - since)
    return found


def _rate(octets: float, seconds: float) -> float:
    return octets * 8 / seconds / _BITS_IN_MBIT
