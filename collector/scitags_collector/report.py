"""An observation as tables for people, and as one JSON object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from scitags_collector.exported import Exporter
from scitags_collector.flows import Carrier, Flow, Sum
from scitags_collector.observation import NANOSECONDS, Chance, Observation, Row
from scitags_core.cli.names import Source
from scitags_core.cli.output import count_text, table
from scitags_core.flow import FlowEvent
from scitags_core.flow_json import encode_event
from scitags_core.tag import Tag

FLOW_LINES = 1000

_ROW_HEADERS = (
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
_EXPORTER_HEADERS = ("exporter", "format", "domain", "datagrams", "records", "flow label", "sampling", "lost")
_FLOW_HEADERS = ("flow", "packets", "octets", "tag from label", "tag from header", "tag from firefly")


def names_of(observation: Observation, row: Row) -> tuple[str, str]:
    """What to call a row."""
    if row.is_untold:
        return f"(IPv{row.version}, no label exported)", ""
    if row.tag is None:
        return f"(IPv{row.version}, untagged)", ""
    called = observation.registry.names(row.tag)
    return called.experiment or str(row.tag.experiment), called.activity or str(row.tag.activity)


def as_text(
    observation: Observation,
    source: Source,
    dropped: int,
    *,
    notes: Sequence[str] = (),
    exporters: Sequence[Exporter] = (),
    with_flows: bool = False,
) -> str:
    """The table by experiment and activity, and what to think of it."""
    rows = [
        (
            *names_of(observation, row),
            f"{row.packets:,}",
            f"{row.octets:,}",
            row.flows,
            row.confirmed,
            row.announced,
            *row.fireflies,
        )
        for row in observation.rows()
    ]
    lines = [table(_ROW_HEADERS, rows, "llrrrrrrrr"), ""]
    if with_flows:
        lines += [flows_text(observation), ""]
    if exporters:
        lines += [exporters_text(exporters), ""]
    lines += [chance_text(observation.chance()), source.description, *_remarks(observation, dropped), *notes]
    return "\n".join(lines)


def _remarks(observation: Observation, dropped: int) -> list[str]:
    found = []
    announcements, beyond = observation.announcements, observation.beyond()
    if announcements.refusals:
        datagrams = count_text(announcements.refusals, "datagram")
        found.append(f"{datagrams} to the port of fireflies could not be read, the first: {announcements.refused[0]}")
    if beyond.packets:
        found.append(f"{count_text(beyond.packets, 'packet')} of more flows than are kept: counted by tag alone")
    if observation.in_tunnels:
        packets = count_text(observation.in_tunnels, "packet")
        found.append(f"{packets} carried in tunnels: they are counted, and not what carried them")
    if dropped:
        found.append(f"{count_text(dropped, 'packet')} dropped by the kernel before they could be looked at")
    return found


def exporters_text(exporters: Sequence[Exporter]) -> str:
    """Who exported, and how well."""
    rows = [
        (
            one.address,
            one.kind,
            one.domain,
            f"{one.datagrams:,}",
            f"{one.records:,}",
            _label_is_told(one),
            ", ".join(f"1:{rate}" for rate in sorted(one.sampling)) or "-",
            f"{one.lost:,}",
        )
        for one in exporters
    ]
    return table(_EXPORTER_HEADERS, rows, "lllrrllr")


def _label_is_told(exporter: Exporter) -> str:
    if not exporter.labelled + exporter.unlabelled:
        return "- (no IPv6)"
    if not exporter.unlabelled:
        return "yes"
    return "in part" if exporter.labelled else "no"


def flows_text(observation: Observation) -> str:
    """Each flow that bears a tag, or was given one by a firefly; the largest first."""
    flows = [flow for flow in observation.flows() if observation.announced(flow) or any(flow.tags) or flow.header_tags]
    flows.sort(key=lambda flow: -flow.total.octets)
    rows = [_flow_row(observation, flow) for flow in flows[:FLOW_LINES]]
    more = [f"and {count_text(len(flows) - FLOW_LINES, 'smaller flow')}"] if len(flows) > FLOW_LINES else []
    return "\n".join([table(_FLOW_HEADERS, rows, "lrrlll"), *more])


def _flow_row(observation: Observation, flow: Flow) -> tuple[str, ...]:
    total = flow.total
    by_label: dict[Tag, Sum] = {}
    for value, borne in flow.labels.items():
        tag = observation.tag_of_label(value)
        if tag is not None:
            by_label.setdefault(tag, Sum()).add(borne.packets, borne.octets)
    return (
        str(flow.key or f"protocol {flow.protocol} {' > '.join(flow.addresses)}"),
        f"{total.packets:,}",
        f"{total.octets:,}",
        _shares(observation, by_label, total),
        _shares(observation, flow.header_tags, total),
        ", ".join(_named(observation, tag) for tag in sorted(observation.announced(flow))) or "-",
    )


def _shares(observation: Observation, borne: dict[Tag, Sum], total: Sum) -> str:
    """The tags, each with the share of the flow's packets that bear it."""
    return (
        ", ".join(f"{_named(observation, tag)} {one.packets / total.packets:.0%}" for tag, one in borne.items()) or "-"
    )


def _named(observation: Observation, tag: Tag) -> str:
    return "/".join(names_of(observation, Row(tag)))


def chance_text(chance: Chance) -> str:
    """What to think of labels that nothing confirms."""
    return (
        f"By chance: a random flow label decodes to a listed pair with a probability of {chance.probability:.2%}. "
        f"Of {count_text(chance.flows, 'flow')} with nothing but a label {chance.matched:,} did, and "
        f"{chance.expected:.2f} are to be expected if all these labels are random."
    )


# --- for programs -------------------------------------------------------------------------------


def as_json(
    observation: Observation,
    source: Source,
    dropped: int,
    *,
    notes: Sequence[str] = (),
    exporters: Sequence[Exporter] = (),
) -> dict[str, Any]:
    """Everything, ready for JSON: docs/observe.md describes the members."""
    announcements = observation.announcements
    return {
        "registry": source.provenance,
        "dropped": dropped,
        "rows": [_row(observation, row) for row in observation.rows()],
        "flows": [_flow(observation, flow) for flow in observation.flows()],
        "flows_not_kept": observation.beyond(),
        "fireflies": [_event(observation, event) for event in announcements.events],
        "fireflies_not_kept": announcements.unlisted,
        "refused_fireflies": announcements.refusals,
        "refusals": announcements.refused,
        "other_frames": observation.other_frames,
        "in_tunnels": observation.in_tunnels,
        "notes": list(notes),
        "exporters": list(exporters),
        "chance": observation.chance(),
        "timeline": {
            "bucket_seconds": observation.bucket / NANOSECONDS,
            "buckets": [
                {"time": number * observation.bucket / NANOSECONDS, "octets": _octets(observation, bucket)}
                for number, bucket in observation.carried_timeline().items()
            ],
            "untold": [
                {"time": number * observation.bucket / NANOSECONDS, "octets": octets}
                for number, octets in observation.untold_timeline().items()
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


def _row(observation: Observation, row: Row) -> dict[str, Any]:
    start, ongoing, end = row.fireflies
    return _tag(observation, row.tag) | {
        "ip_version": row.version,
        "label_untold": row.is_untold,
        "packets": row.packets,
        "octets": row.octets,
        "flows": row.flows,
        "confirmed": row.confirmed,
        "announced_only": row.announced,
        "fireflies": {"start": start, "ongoing": ongoing, "end": end},
    }


def _flow(observation: Observation, flow: Flow) -> dict[str, Any]:
    key, total = flow.key, flow.total
    source, destination = flow.addresses
    return {
        "key": None if key is None else msgspec.to_builtins(key),
        "src": source,
        "dst": destination,
        "ip_protocol": flow.protocol,
        "first": flow.first / NANOSECONDS,
        "last": flow.last / NANOSECONDS,
        "packets": total.packets,
        "octets": total.octets,
        "traffic_classes": flow.traffic_classes,
        "labels": [
            {"label": value} | _borne(observation, observation.tag_of_label(value), borne, total)
            for value, borne in flow.labels.items()
        ],
        "header_tags": [_borne(observation, tag, borne, total) for tag, borne in flow.header_tags.items()],
        "announced": [_tag(observation, tag) for tag in sorted(observation.announced(flow))],
    }


def _borne(observation: Observation, tag: Tag | None, borne: Sum, total: Sum) -> dict[str, Any]:
    share = borne.packets / total.packets
    return {"packets": borne.packets, "octets": borne.octets, "share": share} | _tag(observation, tag)


def _event(observation: Observation, event: FlowEvent) -> dict[str, Any]:
    called = observation.registry.names(event.tag)
    names = {"experiment_name": called.experiment, "activity_name": called.activity}
    return {**msgspec.json.decode(encode_event(event)), **names}


def _octets(observation: Observation, bucket: dict[tuple[Tag | None, Carrier | None], int]) -> list[dict[str, Any]]:
    return [
        _tag(observation, tag) | {"tag_from": carrier, "octets": octets} for (tag, carrier), octets in bucket.items()
    ]
