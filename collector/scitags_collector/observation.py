"""What an observer makes of packets and fireflies, who knows nothing but the registry.

A flow label counts as a tag only when the registry lists the pair that it decodes to. Ordinary hosts put random
labels on their flows, so some of those decode to a listed pair by chance; how many are to be expected is stated,
and a flow that a firefly names as well is beyond doubt.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator

import msgspec

from scitags_collector.packet import TCP, UDP, Packet
from scitags_core import firefly, label
from scitags_core.errors import FireflyError, TagError
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Transport
from scitags_core.registry import Registry
from scitags_core.tag import Tag

NANOSECONDS = 1_000_000_000
LABELS = label.LABEL_MAX + 1
LABELS_PER_TAG = label.ENTROPY_MAX + 1
REFUSALS_KEPT = 20
_PROTOCOLS: dict[int, Transport] = {TCP: "tcp", UDP: "udp"}

RawKey = tuple[bytes, bytes, int]


class Sum(msgspec.Struct):
    """Packets and their IP octets."""

    packets: int = 0
    octets: int = 0

    def add(self, octets: int) -> None:
        self.packets += 1
        self.octets += octets


class Flow(msgspec.Struct):
    """One direction of a connection, as seen.

    labels             what its packets bore as flow labels
    header_tags        and in extension headers
    traffic_classes    packets by DSCP and ECN, eight bits
    """

    key: FlowKey | None
    first: int
    last: int
    total: Sum = msgspec.field(default_factory=Sum)
    labels: dict[int, Sum] = msgspec.field(default_factory=dict)
    header_tags: dict[Tag, Sum] = msgspec.field(default_factory=dict)
    traffic_classes: dict[int, int] = msgspec.field(default_factory=dict)


class Row(msgspec.Struct):
    """The traffic of one tag; tag None is what bears none.

    confirmed    flows that a firefly names with this tag
    announced    flows that a firefly names with this tag and whose packets do not bear it
    """

    tag: Tag | None
    packets: int = 0
    octets: int = 0
    flows: int = 0
    confirmed: int = 0
    announced: int = 0
    fireflies: Counter[str] = msgspec.field(default_factory=Counter)


class Chance(msgspec.Struct, frozen=True):
    """How far labels alone can be trusted.

    probability    that a random label decodes to a listed pair
    flows          IPv6 flows with a label and without a firefly
    matched        how many of these decode to a listed pair
    expected       how many would if all their labels were random
    """

    probability: float
    flows: int
    matched: int
    expected: float


class Observation:
    """Everything seen so far. Pure: packets and their times go in."""

    def __init__(self, registry: Registry, *, bucket: float = 1.0) -> None:
        """bucket is the resolution of the timeline in seconds."""
        self.registry = registry
        self.events: list[FlowEvent] = []
        self.refused: list[str] = []
        self.refusals = 0
        self.timeline: dict[int, dict[Tag | None, int]] = {}
        self.bucket = round(bucket * NANOSECONDS)
        self._flows: dict[RawKey, Flow] = {}
        self._tags: dict[int, Tag | None] = {}
        self._announced: dict[FlowKey, set[Tag]] = {}

    def add(self, time_ns: int, packet: Packet) -> None:
        """Take a packet, in any order of time."""
        octets = packet.octets
        raw = (packet.endpoints, packet.ports, packet.protocol)
        flow = self._flows.get(raw)
        if flow is None:
            flow = self._flows[raw] = Flow(_key(packet), time_ns, time_ns)
        flow.last = time_ns
        flow.total.add(octets)
        classes = flow.traffic_classes
        classes[packet.traffic_class] = classes.get(packet.traffic_class, 0) + 1
        tag: Tag | None = None
        if packet.version == 6:  # noqa: PLR2004
            borne = flow.labels.get(packet.label)
            if borne is None:
                borne = flow.labels[packet.label] = Sum()
            borne.packets += 1
            borne.octets += octets
            tag = self.tag_of_label(packet.label)
            if packet.header_tag is not None:
                flow.header_tags.setdefault(packet.header_tag, Sum()).add(octets)
                tag = packet.header_tag if packet.header_tag in self.registry else tag
        bucket = self.timeline.setdefault(time_ns // self.bucket, {})
        bucket[tag] = bucket.get(tag, 0) + octets
        if packet.payload:
            self.add_firefly(packet.payload)

    def add_firefly(self, datagram: bytes) -> None:
        """Take a firefly; what is none is counted."""
        try:
            event = firefly.decode(datagram).event
        except FireflyError as error:
            self.refusals += 1
            if len(self.refused) < REFUSALS_KEPT:
                self.refused.append(str(error))
            return
        self.events.append(event)
        for direction in (event.key, event.key.reversed()):
            self._announced.setdefault(direction, set()).add(event.tag)

    def tag_of_label(self, value: int) -> Tag | None:
        """The listed tag that a label decodes to, None when there is none."""
        try:
            return self._tags[value]
        except KeyError:
            pass
        try:
            found: Tag | None = label.decode(value).tag
        except TagError:
            found = None
        known = self._tags[value] = found if found in self.registry else None
        return known

    def flows(self) -> Iterator[Flow]:
        """Every flow, in the order of first sight."""
        return iter(self._flows.values())

    def borne(self, flow: Flow) -> dict[Tag, Sum]:
        """The listed tags of a flow's packets. A packet that bears one twice counts once."""
        found: dict[Tag, Sum] = {}
        for tag, borne in flow.header_tags.items():
            if tag in self.registry:
                found[tag] = Sum(borne.packets, borne.octets)
        for value, borne in flow.labels.items():
            tag_of = self.tag_of_label(value)
            if tag_of is None:
                continue
            here = found.setdefault(tag_of, Sum())
            here.packets, here.octets = max(here.packets, borne.packets), max(here.octets, borne.octets)
        return found

    def announced(self, flow: Flow) -> set[Tag]:
        """The tags that fireflies gave to this connection, in either direction."""
        return self._announced.get(flow.key, set()) if flow.key is not None else set()

    def rows(self) -> list[Row]:
        """The traffic by tag, in the order of ids; the untagged last."""
        rows: dict[Tag | None, Row] = {}

        def row(tag: Tag | None) -> Row:
            return rows.setdefault(tag, Row(tag))

        for flow in self.flows():
            borne, announced = self.borne(flow), self.announced(flow)
            for tag, found in borne.items():
                one = row(tag)
                one.flows += 1
                one.confirmed += tag in announced
                one.packets += found.packets
                one.octets += found.octets
            for tag in announced - borne.keys():
                row(tag).announced += 1
            if not borne:
                rest = row(None)
                rest.flows += 1
                rest.packets += flow.total.packets
                rest.octets += flow.total.octets
        for event in self.events:
            row(event.tag).fireflies[event.state.value] += 1
        return sorted(rows.values(), key=lambda one: (one.tag is None, one.tag or Tag(0, 0)))

    def chance(self) -> Chance:
        """How many flows can be expected to bear a listed pair by chance."""
        usable = sum(tag.experiment <= label.EXPERIMENT_MAX for tag in self.registry.tags())
        probability = usable * LABELS_PER_TAG / LABELS
        doubtful = [flow for flow in self.flows() if any(flow.labels) and not self.announced(flow)]
        matched = sum(bool(self.borne(flow)) for flow in doubtful)
        return Chance(probability, len(doubtful), matched, probability * len(doubtful))


def state_counts(row: Row) -> tuple[int, int, int]:
    """A row's fireflies: start, ongoing, end."""
    return tuple(row.fireflies[state.value] for state in FlowState)  # type: ignore[return-value]


def _key(packet: Packet) -> FlowKey | None:
    """The 5-tuple in words; None for what is neither TCP nor UDP, or has no ports."""
    protocol = _PROTOCOLS.get(packet.protocol)
    if protocol is None or not packet.ports:
        return None
    half = len(packet.endpoints) // 2
    source, destination = (ipaddress.ip_address(part) for part in (packet.endpoints[:half], packet.endpoints[half:]))
    ports = (int.from_bytes(part, "big") for part in (packet.ports[:2], packet.ports[2:]))
    return FlowKey.of(str(source), next(ports), str(destination), next(ports), protocol)
