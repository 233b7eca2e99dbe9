"""An observation as a table for people, and as one JSON object for programs."""

from __future__ import annotations

from typing import Any

import msgspec

from scitags_collector.observation import NANOSECONDS, Chance, Observation, state_counts
from scitags_core.cli.names import Source
from scitags_core.cli.output import table
from scitags_core.flow_json import encode_event
from scitags_core.tag import Tag

HEADERS = (
    "experiment",
    "activity",
    "packets",
    "octets",
    "flows",
    "confirmed",
    "announced only",
    "start",
    "ongoing",
    "end",
)


def names_of(observation: Observation, tag: Tag | None) -> tuple[str, str]:
    """What to call a tag's row."""
    if tag is None:
        return "(untagged)", ""
    called = observation.registry.names(tag)
    return called.experiment or str(tag.experiment), called.activity or str(tag.activity)


def as_text(observation: Observation, source: Source, dropped: int) -> str:
    """The table by experiment and activity, and what to think of it."""
    rows = [
        (
            *names_of(observation, row.tag),
            f"{row.packets:,}",
            f"{row.octets:,}",
            row.flows,
            row.confirmed,
            row.announced,
            *state_counts(row),
        )
        for row in observation.rows()
    ]
    lines = [
        table(HEADERS, rows, "llrrrrrrrr"),
        "",
        chance_text(observation.chance()),
        source.description,
    ]
    if observation.refusals:
        lines.append(f"{observation.refusals} datagrams to the port of fireflies were none: {observation.refused[0]}")
    if dropped:
        lines.append(f"{dropped} packets were dropped by the kernel before they could be looked at")
    return "\n".join(lines)


def chance_text(chance: Chance) -> str:
    """What to think of labels that no firefly confirms."""
    return (
        f"By chance: a random flow label decodes to a listed pair with a probability of {chance.probability:.2%}. Of "
        f"{chance.flows} flows without a firefly {chance.matched} did, and {chance.expected:.2f} are to be expected."
    )


def as_json(observation: Observation, source: Source, dropped: int) -> dict[str, Any]:
    """Everything, ready for JSON: docs/observe.md describes the members."""
    return {
        "registry": source.provenance,
        "dropped": dropped,
        "rows": [_row(observation, row) for row in observation.rows()],
        "flows": [_flow(observation, flow) for flow in observation.flows()],
        "fireflies": [_event(observation, event) for event in observation.events],
        "refused_fireflies": observation.refusals,
        "refusals": observation.refused,
        "chance": observation.chance(),
        "timeline": {
            "bucket_seconds": observation.bucket / NANOSECONDS,
            "buckets": [
                {"time": number * observation.bucket / NANOSECONDS, "octets": _octets(observation, bucket)}
                for number, bucket in sorted(observation.timeline.items())
            ],
        },
    }


def _tag(observation: Observation, tag: Tag | None) -> dict[str, Any]:
    if tag is None:
        return {"experiment_id": None, "activity_id": None, "experiment": None, "activity": None}
    called = observation.registry.names(tag)
    return {
        "experiment_id": tag.experiment,
        "activity_id": tag.activity,
        "experiment": called.experiment,
        "activity": called.activity,
    }


def _row(observation: Observation, row: Any) -> dict[str, Any]:
    start, ongoing, end = state_counts(row)
    return _tag(observation, row.tag) | {
        "packets": row.packets,
        "octets": row.octets,
        "flows": row.flows,
        "confirmed": row.confirmed,
        "announced_only": row.announced,
        "fireflies": {"start": start, "ongoing": ongoing, "end": end},
    }


def _flow(observation: Observation, flow: Any) -> dict[str, Any]:
    key = flow.key
    return {
        "key": None if key is None else msgspec.to_builtins(key),
        "first": flow.first / NANOSECONDS,
        "last": flow.last / NANOSECONDS,
        "packets": flow.total.packets,
        "octets": flow.total.octets,
        "traffic_classes": flow.traffic_classes,
        "labels": [
            {"label": value, "packets": borne.packets, "octets": borne.octets}
            | _tag(observation, observation.tag_of_label(value))
            for value, borne in flow.labels.items()
        ],
        "header_tags": [
            {"packets": borne.packets, "octets": borne.octets} | _tag(observation, tag)
            for tag, borne in flow.header_tags.items()
        ],
        "announced": [_tag(observation, tag) for tag in sorted(observation.announced(flow))],
    }


def _event(observation: Observation, event: Any) -> dict[str, Any]:
    called = observation.registry.names(event.tag)
    names = {"experiment_name": called.experiment, "activity_name": called.activity}
    return {**msgspec.json.decode(encode_event(event)), **names}


def _octets(observation: Observation, bucket: dict[Tag | None, int]) -> list[dict[str, Any]]:
    return [_tag(observation, tag) | {"octets": octets} for tag, octets in bucket.items()]
