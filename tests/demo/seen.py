"""Records and observations for the tests of the pure parts: a perfect observer of a plan, to be spoilt."""

from __future__ import annotations

import msgspec

from scitags_core import label
from scitags_core.flow import FlowKey, FlowState
from scitags_core.tag import Tag
from scitags_demo.observer import Announcement, Borne, Flow, Observation, Timeline
from scitags_demo.plan import DSCPS, FIRST_CLIENT_PORT, Connection, Plan, Side
from scitags_demo.service import Mark, Record

ADDRESSES: dict[int, dict[Side, str]] = {
    6: {"west": "2001:db8:1::10", "east": "2001:db8:2::20"},
    4: {"west": "198.51.100.10", "east": "203.0.113.20"},
}
ECT = 0b10
PAYLOAD, HEADERS, ACK = 1400, {6: 72, 4: 52}, {6: 72, 4: 52}


def record_of(connection: Connection) -> Record:
    """What the storages count when all goes as planned."""
    record = Record(connection=connection, key=connection.key(ADDRESSES[connection.family]))
    files = connection.transfers
    record.octets = sum(file.octets for file in files)
    record.starts = [file.tag for file in files if file.tag is not None]
    record.ends = list(record.starts)
    record.marks = [Mark(0, files[0].tag)]
    if len(connection.tags) > 1:
        record.marks.append(Mark(files[0].octets, files[1].tag))
    return record


def records_of(plan: Plan) -> list[Record]:
    return [record_of(connection) for connection in plan.connections]


def flows_of(record: Record, *, marking: bool) -> list[Flow]:
    """Both directions, as they would be seen: full packets one way, an acknowledgement for each the other way."""
    family = record.connection.family
    parts = [
        (packet_label(tag, marking and family == 6), -(-octets // PAYLOAD), octets)
        for tag, octets in record.octets_by_mark().items()
    ]
    there = [(value, packets, octets + packets * HEADERS[family]) for value, packets, octets in parts]
    back = [(value or 0, packets, packets * ACK[family]) for value, packets, _ in parts]
    if not record.connection.tags:
        back = [(0xABCDE if family == 6 else 0, packets, octets) for _, packets, octets in back]
    return [flow_of(record.key, there), flow_of(record.key.reversed(), back)]


def packet_label(tag: Tag | None, marked: bool) -> int:
    return label.encode(tag.experiment, tag.activity, 9) if tag is not None and marked else 0


def flow_of(key: FlowKey, parts: list[tuple[int, int, int]]) -> Flow:
    borne = tuple(Borne(value, packets, octets, *ids(value)) for value, packets, octets in parts)
    packets, octets = sum(one.packets for one in borne), sum(one.octets for one in borne)
    number = max(key.src_port, key.dst_port) - FIRST_CLIENT_PORT
    classes = {DSCPS[number % len(DSCPS)] << 2 | ECT: packets}
    return Flow(key=key, first=100.0, last=104.0, packets=packets, octets=octets, labels=borne, traffic_classes=classes)


def ids(value: int) -> tuple[int, int] | tuple[None, None]:
    """What an observer whose registry lists everything below 30 makes of a label."""
    try:
        tag = label.decode(value).tag
    except ValueError:
        return None, None
    return (tag.experiment, tag.activity) if tag.experiment < 30 else (None, None)


def observation_of(records: list[Record], *, marking: bool = True) -> Observation:
    flows = {flow.key: flow for record in records for flow in flows_of(record, marking=marking) if flow.key}
    announcements = [
        Announcement(record.key, tag, state)
        for record in records
        for state, tags in ((FlowState.START, record.starts), (FlowState.END, record.ends))
        for tag in tags
    ]
    return Observation(0, flows, tuple(announcements), 0, Timeline(0.25, {}))


def with_flow(observation: Observation, flow: Flow) -> Observation:
    """The same, but for this flow."""
    assert flow.key is not None
    return msgspec.structs.replace(observation, flows={**observation.flows, flow.key: flow})
