"""The observer's report, as `scitags observe --json` writes it: what was decoded from the wire, and nothing else."""

from __future__ import annotations

from typing import Any

import msgspec

from scitags_core.errors import FlowEventError
from scitags_core.flow import FlowKey, FlowState
from scitags_core.flow_json import decode_event
from scitags_core.tag import Tag


class Borne(msgspec.Struct, frozen=True):
    """What some packets of a flow bore as flow label; the ids are None when the registry does not list it."""

    label: int
    packets: int
    octets: int
    experiment_id: int | None
    activity_id: int | None

    @property
    def tag(self) -> Tag | None:
        return _tag(self.experiment_id, self.activity_id)


class Flow(msgspec.Struct, frozen=True):
    """One direction of a connection; first and last are when it was seen, in seconds since 1970."""

    key: FlowKey | None
    first: float
    last: float
    packets: int
    octets: int
    labels: tuple[Borne, ...]
    traffic_classes: dict[int, int] = {}  # packets by DSCP and ECN

    def packets_with(self, tag: Tag) -> int:
        return sum(borne.packets for borne in self.labels if borne.tag == tag)

    def octets_with(self, tag: Tag) -> int:
        return sum(borne.octets for borne in self.labels if borne.tag == tag)


class Announcement(msgspec.Struct, frozen=True):
    """One firefly.

    started    when its transfer began, in seconds since 1970
    octets     that it says were moved, either way
    """

    key: FlowKey
    tag: Tag
    state: FlowState
    started: float | None = None
    octets: int | None = None
    application: str = ""


class _Part(msgspec.Struct):
    experiment_id: int | None
    activity_id: int | None
    octets: int

    @property
    def tag(self) -> Tag | None:
        return _tag(self.experiment_id, self.activity_id)


class _Bucket(msgspec.Struct):
    time: float
    octets: list[_Part]


class _Timeline(msgspec.Struct):
    bucket_seconds: float
    buckets: list[_Bucket]


class _Report(msgspec.Struct):
    dropped: int
    flows: list[Flow]
    fireflies: list[dict[str, Any]]
    refused_fireflies: int
    timeline: _Timeline


class Timeline(msgspec.Struct, frozen=True):
    """Octets by tag, interval by interval of so many seconds; times are seconds since 1970."""

    seconds: float
    octets: dict[float, dict[Tag | None, int]]


class Observation(msgspec.Struct, frozen=True):
    """What the observer saw. dropped counts packets that its kernel could not hand to it."""

    dropped: int
    flows: dict[FlowKey, Flow]
    announcements: tuple[Announcement, ...]
    refused_fireflies: int
    timeline: Timeline


def parse(document: bytes) -> Observation:
    """The observation in a report. Raises FlowEventError for what is none."""
    try:
        report = msgspec.json.decode(document, type=_Report)
    except msgspec.DecodeError as error:
        raise FlowEventError(f"no report of an observer: {error}") from None
    octets: dict[float, dict[Tag | None, int]] = {}
    for bucket in report.timeline.buckets:
        parts = octets.setdefault(bucket.time, {})
        for part in bucket.octets:  # a tag has one for each place where packets bear it
            parts[part.tag] = parts.get(part.tag, 0) + part.octets
    timeline = Timeline(report.timeline.bucket_seconds, octets)
    return Observation(
        report.dropped,
        {flow.key: flow for flow in report.flows if flow.key is not None},
        tuple(_announcement(item) for item in report.fireflies),
        report.refused_fireflies,
        timeline,
    )


def _announcement(item: dict[str, Any]) -> Announcement:
    # The names come with every event for the reader's sake; the codec of events does not know them.
    own = {name: value for name, value in item.items() if name not in ("experiment_name", "activity_name")}
    event = decode_event(own)
    started = event.start_time.timestamp() if event.start_time else None
    octets = None if event.usage is None else (event.usage.sent or 0) + (event.usage.received or 0)
    return Announcement(event.key, event.tag, event.state, started, octets, event.application)


def _tag(experiment: int | None, activity: int | None) -> Tag | None:
    return None if experiment is None or activity is None else Tag(experiment, activity)
