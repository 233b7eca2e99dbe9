"""What was sent against what was decoded, tag by tag. Pure.

The storages' side: the plan, and what they counted on each connection. The observer's side: what it decoded from
packets and fireflies, who knows nothing but the registry. The two meet in the 5-tuples.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from scitags_core.flow import FlowKey, FlowState
from scitags_core.tag import Tag
from scitags_demo import traffic_class
from scitags_demo.observer import Flow, Observation
from scitags_demo.service import Record

# What a packet has beside the octets that were handed to TCP: its IP header, and TCP's of 20 to 60 octets.
_IP_OCTETS = {6: 40, 4: 20}
_TCP_LEAST, _TCP_MOST = 20, 60


class Octets(msgspec.Struct):
    """sent: handed to TCP. decoded: of whole IP packets, both directions.

    decoded less its headers lies in least..most, as headers vary; again is what TCP had to send twice.
    """

    sent: int = 0
    decoded: int = 0
    least: int = 0
    most: int = 0
    again: int = 0

    def add(self, sent: int, decoded: int, packets: int, family: int) -> None:
        """Take a connection's octets; packets are those that were decoded."""
        self.sent += sent
        self.decoded += decoded
        self.least += decoded - packets * (_IP_OCTETS[family] + _TCP_MOST)
        self.most += decoded - packets * (_IP_OCTETS[family] + _TCP_LEAST)


class Row(msgspec.Struct, kw_only=True):
    """One tag; None is the traffic without one. Pairs are (sent, decoded).

    flows          connections
    packets        seen on its connections over IPv6: all, and those that bear the tag
    starts, ends   fireflies
    problems       what differs; none when the two sides agree
    """

    tag: Tag | None
    flows: tuple[int, int] = (0, 0)
    octets: Octets = msgspec.field(default_factory=Octets)
    packets: int = 0
    marked: int = 0
    starts: tuple[int, int] = (0, 0)
    ends: tuple[int, int] = (0, 0)
    problems: list[str] = msgspec.field(default_factory=list)

    @property
    def share_marked(self) -> float | None:
        """0.0 to 1.0; None where no packet could have been marked."""
        return self.marked / self.packets if self.packets else None


class Comparison(msgspec.Struct, frozen=True):
    """All of it. notes are what a reader ought to know and is no disagreement."""

    rows: list[Row]
    notes: list[str]
    marking: bool
    dropped: int

    @property
    def agrees(self) -> bool:
        return not any(row.problems for row in self.rows)


class Seen(msgspec.Struct, frozen=True):
    """A connection as the observer saw it: its one or two directions."""

    directions: tuple[Flow, ...]

    @property
    def packets(self) -> int:
        return sum(flow.packets for flow in self.directions)

    @property
    def octets(self) -> int:
        return sum(flow.octets for flow in self.directions)

    def packets_with(self, tag: Tag) -> int:
        return sum(flow.packets_with(tag) for flow in self.directions)

    def octets_with(self, tag: Tag) -> int:
        return sum(flow.octets_with(tag) for flow in self.directions)


def compare(records: Sequence[Record], observation: Observation, *, marking: bool) -> Comparison:
    """The comparison. Without marking, an observer finds flows by their fireflies alone."""
    rows: dict[Tag | None, Row] = {}
    for record in records:
        owners: set[Tag | None] = {*record.connection.tags}
        for tag in owners or {None}:
            rows.setdefault(tag, Row(tag=tag))
        seen = seen_of(record.key, observation)
        if not record.connection.tags:
            _add_untagged(rows[None], record, seen, observation)
        elif marking and record.connection.family == 6:  # noqa: PLR2004
            _add_marked(rows, record, seen)
        else:
            _add_announced(rows, record, seen, observation)
        _add_fireflies(rows, record, observation)
        if record.connection.family == 6:  # noqa: PLR2004
            wrong = [traffic_class.problem(record, flow) for flow in seen.directions]
            rows[record.marks[0].tag].problems += [one for one in wrong if one]
    ordered = sorted(rows.values(), key=lambda row: (row.tag is None, row.tag or Tag(0, 0)))
    for row in ordered:
        row.problems += _problems(row, marking=marking, dropped=observation.dropped)
    return Comparison(ordered, _notes(records, observation, marking=marking), marking, observation.dropped)


def seen_of(key: FlowKey, observation: Observation) -> Seen:
    """What the observer saw of a connection."""
    both = (observation.flows.get(key), observation.flows.get(key.reversed()))
    return Seen(tuple(flow for flow in both if flow is not None))


def _add_marked(rows: dict[Tag | None, Row], record: Record, seen: Seen) -> None:
    """A connection over IPv6 whose packets were to be marked: found by its labels."""
    sent = record.octets_by_mark()
    # Packets that bear none of the connection's tags lack the mark: they count against the first.
    unmarked = seen.packets - sum(seen.packets_with(tag) for tag in record.connection.tags)
    for tag in record.connection.tags:
        row, marked = rows[tag], seen.packets_with(tag)
        row.flows = row.flows[0] + (tag in sent), row.flows[1] + bool(marked)
        row.packets += marked + (unmarked if tag == record.marks[0].tag else 0)
        row.marked += marked
        row.octets.add(sent.get(tag, 0), seen.octets_with(tag), marked, record.connection.family)
        row.octets.again += record.retransmitted


def _add_announced(rows: dict[Tag | None, Row], record: Record, seen: Seen, observation: Observation) -> None:
    """A connection whose packets could not be marked: found by its fireflies.

    Which of its octets were whose cannot be told then; all count for the tag that came first.
    """
    announced = {one.tag for one in observation.announcements if one.key in (record.key, record.key.reversed())}
    for tag in record.connection.tags:
        row = rows[tag]
        row.flows = row.flows[0] + 1, row.flows[1] + (tag in announced and bool(seen.directions))
        if tag == record.marks[0].tag and tag in announced:
            row.octets.add(record.octets, seen.octets, seen.packets, record.connection.family)
            row.octets.again += record.retransmitted


def _add_untagged(row: Row, record: Record, seen: Seen, observation: Observation) -> None:
    """A connection that was to be left alone: no firefly, and the labels that its own hosts gave it."""
    row.flows = row.flows[0] + 1, row.flows[1] + bool(seen.directions)
    row.octets.add(record.octets, seen.octets, seen.packets, record.connection.family)
    row.octets.again += record.retransmitted
    if any(one.key in (record.key, record.key.reversed()) for one in observation.announcements):
        row.problems.append(f"{record.key} has no tag, and a firefly")
    labels = [{borne.label for borne in flow.labels} for flow in seen.directions]
    # A host may draw a new label after it had to send again.
    if any(len(one) > 1 for one in labels) and not record.retransmitted:
        row.problems.append(f"{record.key} has no tag, and its label changes")
    # Each host draws its own; ours give both directions the same.
    shared = set.intersection(*labels) - {0} if len(labels) > 1 else set()
    if shared and _tags(seen):
        row.problems.append(f"{record.key} has no tag, and the mark of one")


def _add_fireflies(rows: dict[Tag | None, Row], record: Record, observation: Observation) -> None:
    """Fireflies name the data's supplier as source, as the storages reported it."""
    mine = [one for one in observation.announcements if one.key == record.key]
    for tag in record.connection.tags:
        row = rows[tag]
        decoded = [one.state for one in mine if one.tag == tag]
        row.starts = row.starts[0] + record.starts.count(tag), row.starts[1] + decoded.count(FlowState.START)
        row.ends = row.ends[0] + record.ends.count(tag), row.ends[1] + decoded.count(FlowState.END)


def _problems(row: Row, *, marking: bool, dropped: int) -> list[str]:
    """What differs in a row. Of what the capture dropped nothing can be known, so less than was sent is then fine."""
    found = []
    for name, (sent, decoded) in (("flows", row.flows), ("starts", row.starts), ("ends", row.ends)):
        if decoded > sent or (decoded < sent and not dropped):
            found.append(f"{name}: {sent} sent, {decoded} decoded")
    octets = row.octets
    if octets.least > octets.sent + octets.again or (octets.most < octets.sent and not dropped):
        found.append(f"octets: {octets.sent} sent, {octets.least} to {octets.most} decoded without headers")
    if marking and row.tag is not None and row.marked < row.packets:
        found.append(f"{row.packets - row.marked} of {row.packets} packets do not bear the tag")
    return found


def _notes(records: Sequence[Record], observation: Observation, *, marking: bool) -> list[str]:
    notes = [_traffic_classes(records, observation)]
    untagged = [record for record in records if not record.connection.tags]
    by_chance = sum(bool(_tags(seen_of(record.key, observation))) for record in untagged)
    if by_chance:
        notes.append(
            f"{by_chance} of {len(untagged)} untagged connections bear a label that happens to decode to a listed "
            "pair, as their hosts draw labels at random; no firefly names them"
        )
    older = sum(record.connection.family == 4 and bool(record.connection.tags) for record in records)  # noqa: PLR2004
    if older and marking:
        notes.append(
            f"{older} tagged connection{'s' if older > 1 else ''} over IPv4, which has no flow label: found by "
            "fireflies, and not part of the share of packets marked"
        )
    shared = sum(len(record.connection.tags) > 1 for record in records)
    if shared and not marking:
        notes.append(
            f"{shared} connections were used for two activities; by fireflies alone their octets cannot be told "
            "apart, and count for the first"
        )
    again = sum(record.retransmitted for record in records)
    if again:
        notes.append(f"{again} octets were sent again by TCP")
    if observation.dropped:
        notes.append(f"the capture dropped {observation.dropped} packets: compared by what was seen")
    if observation.refused_fireflies:
        notes.append(f"{observation.refused_fireflies} datagrams to the port of fireflies could not be read")
    return notes


def _traffic_classes(records: Sequence[Record], observation: Observation) -> str:
    directions = [
        (record, flow)
        for record in records
        if record.connection.family == 6  # noqa: PLR2004
        for flow in seen_of(record.key, observation).directions
    ]
    kept = sum(traffic_class.problem(record, flow) is None for record, flow in directions)
    values = sorted({record.connection.dscp for record, _ in directions})
    capable = sum(traffic_class.ecn_capable(flow) for _, flow in directions)
    return (
        f"DSCP and ECN came through as set in {kept} of {len(directions)} directions over IPv6 "
        f"(DSCP {', '.join(map(str, values))}; {capable:,} packets with ECN)"
    )


def _tags(seen: Seen) -> set[Tag]:
    return {borne.tag for flow in seen.directions for borne in flow.labels if borne.tag is not None}
