"""What an observer makes of packets and fireflies, who knows nothing but the registry.

A flow label counts as a tag only when the registry lists the pair that it decodes to. Ordinary hosts put random
labels on their flows, so some of those decode to a listed pair by chance; how many are to be expected is stated,
and a flow that a firefly names as well is beyond doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from scitags_collector.announcements import Announcements
from scitags_collector.exported import Exported
from scitags_collector.flows import Carrier, Flow, Strand, Sum, carrier_of
from scitags_collector.link import Frame
from scitags_collector.packet import Packet
from scitags_core import label
from scitags_core.errors import TagError
from scitags_core.flow import FlowState
from scitags_core.registry import Registry
from scitags_core.tag import Tag

NANOSECONDS = 1_000_000_000
LABELS = label.LABEL_MAX + 1
LABELS_PER_TAG = label.ENTROPY_MAX + 1
# Half a kilobyte or so each. What comes after is counted by tag alone.
STRANDS_KEPT = 1_000_000
FRAGMENTS_KEPT = 1 << 16
HEADS_KEPT = 1 << 17


class Row(msgspec.Struct):
    """The traffic of one tag, or of an IP version without one: tag is None then.

    Every packet is in one row. A flow whose packets differ is in several.

    is_untold    this is traffic whose exporter tells no flow label: it may be tagged or not
    flows        5-tuples, each direction by itself
    confirmed    of these, flows that a firefly names with this tag
    announced    flows that a firefly names with this tag and whose packets do not bear it
    fireflies    start, ongoing, end
    """

    tag: Tag | None
    version: int | None = None
    is_untold: bool = False
    packets: int = 0
    octets: int = 0
    flows: int = 0
    confirmed: int = 0
    announced: int = 0
    fireflies: tuple[int, int, int] = (0, 0, 0)


class Chance(msgspec.Struct, frozen=True):
    """How far labels alone can be trusted.

    probability    that a random label decodes to a listed pair
    flows          IPv6 flows that bear a label and have no firefly and no extension header to confirm it
    matched        how many of these bear the label of a listed pair
    expected       how many would if all their labels were random
    """

    probability: float
    flows: int
    matched: int
    expected: float


class _Places:
    """The rows of a table, made as they are needed."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows = {(row.tag, row.version, row.is_untold): row for row in rows}

    def row(self, tag: Tag | None, version: int | None = None, *, is_untold: bool = False) -> Row:
        place = (tag, version if tag is None else None, is_untold)
        if place not in self._rows:
            self._rows[place] = Row(*place)
        return self._rows[place]

    def count(self, flow: Flow, announced: frozenset[Tag]) -> None:
        """Take a flow into the rows that it belongs to."""
        borne = flow.tags
        for tag, found in borne.items():
            one = self.row(tag, flow.version)
            one.flows += 1
            one.confirmed += tag in announced
            one.packets += found.packets
            one.octets += found.octets
        untold = flow.untold
        if untold.packets or untold.octets:
            one = self.row(None, flow.version, is_untold=True)
            one.flows += 1
            one.packets += untold.packets
            one.octets += untold.octets
        for tag in announced - borne.keys():
            self.row(tag).announced += 1

    def copy(self) -> _Places:
        return _Places(msgspec.structs.replace(row) for row in self._rows.values())

    def all(self) -> list[Row]:
        return list(self._rows.values())


class Observation:
    """Everything seen so far. Pure: packets and their times go in.

    announcements   what the fireflies among the packets said
    other_frames    frames that held no IP packet
    in_tunnels      packets that were carried by others; what carried them is not counted
    """

    def __init__(self, registry: Registry, *, bucket: float = 1.0, strands_kept: int = STRANDS_KEPT) -> None:
        """bucket is the resolution of the timeline in seconds."""
        self.registry = registry
        self.bucket = round(bucket * NANOSECONDS)
        self.announcements = Announcements()
        self.other_frames = 0
        self.in_tunnels = 0
        self._forgotten = _Places()
        self._chance_of_forgotten = (0, 0, 0.0)
        self._heads: dict[bytes, tuple[Strand, int]] = {}
        self._beyond: dict[tuple[int, Tag | None, bool], Strand] = {}
        self._strands_kept = strands_kept
        self._flows: dict[tuple[bytes, bytes, int], Flow] = {}
        self._strands: dict[tuple[object, ...], Strand] = {}
        self._series: dict[tuple[Tag | None, Carrier | None], dict[int, int]] = {}
        self._untold: dict[int, int] = {}
        self._fragments: dict[tuple[bytes, int, bytes], bytes] = {}
        self._tags: dict[int, Tag | None] = {}

    def add(self, time_ns: int, packet: Packet) -> None:
        """Take a packet, in any order of time."""
        self._strand(time_ns, packet).add(time_ns, packet.octets, self.bucket)
        self.in_tunnels += packet.depth > 0
        if packet.payload:
            self.announcements.add(packet.payload, time_ns)

    def add_exported(self, told: Exported) -> None:
        """Take what an exporter tells of packets."""
        packet = told.packet
        self.in_tunnels += told.packets * (packet.depth > 0)
        self._strand(told.first, packet).add_many(told.first, told.last, told.packets, told.octets, self.bucket)
        if packet.payload:
            self.announcements.add(packet.payload, told.last)

    def add_frames(self, frames: Iterable[Frame]) -> None:
        """Take frames, as far as they hold packets.

        Frames that begin alike are alike to us: each such beginning is parsed and decoded once. This loop is where an
        observer's time goes.
        """
        bucket = self.bucket
        heads = self._heads
        heads.clear()  # the same octets may have come with another link type
        for time_ns, link, buffer, at, captured, wire in frames:
            length = link.head
            head = buffer[at : at + length] if captured >= length else b""
            known = heads.get(head)
            if known is None:
                packet = link.parse(buffer[at : at + captured], wire)
                if packet is None:
                    self.other_frames += 1
                    continue
                strand, octets = self._strand(time_ns, packet), packet.octets
                self.in_tunnels += packet.depth > 0
                if packet.payload:
                    self.announcements.add(packet.payload, time_ns)
                elif head and link.is_told_by(head):
                    if len(heads) >= HEADS_KEPT:
                        heads.clear()
                    heads[head] = strand, octets
            else:
                strand, octets = known
            # What Strand.add does, without the call.
            strand.packets += 1
            strand.octets += octets
            if time_ns > strand.last:  # noqa: PLR1730  (max() takes thrice as long)
                strand.last = time_ns
            series, now = strand.series, time_ns // bucket
            series[now] = series.get(now, 0) + octets

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

    def beyond(self) -> Sum:
        """The packets of flows that came when there was no place for more: they are in the rows, and in no flow."""
        total = Sum()
        for strand in self._beyond.values():
            total.add(strand.packets, strand.octets)
        return total

    def timeline(self) -> dict[int, dict[Tag | None, int]]:
        """Octets by tag in each bucket, by its number: its time in nanoseconds is that by self.bucket."""
        found: dict[int, dict[Tag | None, int]] = {}
        for number, carried in self.carried_timeline().items():
            bucket = found.setdefault(number, {})
            for (tag, _), octets in carried.items():
                bucket[tag] = bucket.get(tag, 0) + octets
        return found

    def carried_timeline(self) -> dict[int, dict[tuple[Tag | None, Carrier | None], int]]:
        """As timeline, by tag and what carried it."""
        found: dict[int, dict[tuple[Tag | None, Carrier | None], int]] = {}
        for place, series in self._series.items():
            for number, octets in series.items():
                found.setdefault(number, {})[place] = octets
        return dict(sorted(found.items()))

    def untold_timeline(self) -> dict[int, int]:
        """Octets of which nobody can say whether they are tagged, by number of the bucket: none is in the timeline."""
        return dict(sorted(self._untold.items()))

    def announced(self, flow: Flow) -> frozenset[Tag]:
        """The tags that fireflies gave to this connection, in either direction."""
        return self.announcements.tags(flow.tuple5)

    def rows(self) -> list[Row]:
        """The traffic by tag, in the order of ids; then that without one over IPv6, and over IPv4."""
        places = self._forgotten.copy()
        for flow in self.flows():
            places.count(flow, self.announced(flow))
        for (version, tag_beyond, is_untold), strand in self._beyond.items():
            one = places.row(tag_beyond, version, is_untold=is_untold)
            one.packets += strand.packets
            one.octets += strand.octets
        counts = self.announcements.counts
        for tag in {tag for tag, _ in counts}:
            places.row(tag).fireflies = tuple(counts[tag, state] for state in FlowState)  # type: ignore[assignment]
        return sorted(
            places.all(),
            key=lambda one: (one.is_untold, one.tag is None, one.tag or Tag(0, 0), -(one.version or 0)),
        )

    def chance(self) -> Chance:
        """How many flows can be expected to bear a listed pair by chance."""
        probability = self._probability()
        flows, matched, expected = self._reckoned(self.flows(), probability)
        past = self._chance_of_forgotten
        return Chance(probability, flows + past[0], matched + past[1], expected + past[2])

    def forget(self, before: int) -> None:
        """Let go of flows, and of the timeline, of which nothing was seen since then (nanoseconds since 1970).

        The table and the reckoning of chance keep them; should more of such a flow come, it counts as another one.
        """
        old = {place: flow for place, flow in self._flows.items() if flow.last < before}
        more = self._reckoned(old.values(), self._probability()) if old else (0, 0, 0.0)
        past = self._chance_of_forgotten
        self._chance_of_forgotten = past[0] + more[0], past[1] + more[1], past[2] + more[2]
        for place, flow in old.items():
            self._forgotten.count(flow, self.announced(flow))
            self.announcements.forget(place)
            del self._flows[place]
        if old:
            self._strands = {key: strand for key, strand in self._strands.items() if key[:3] not in old}
            self._heads.clear()
        for series in (*self._series.values(), self._untold):
            for number in [number for number in series if number < before // self.bucket]:
                del series[number]

    def _probability(self) -> float:
        usable = sum(tag.experiment <= label.EXPERIMENT_MAX for tag in self.registry.tags())
        return usable * LABELS_PER_TAG / LABELS

    def _reckoned(self, flows: Iterable[Flow], probability: float) -> tuple[int, int, float]:
        """Of these: flows that have nothing but a label, those that match, and how many are expected to."""
        count = matched = 0
        expected = 0.0
        for flow in flows:
            labels = [value for value in flow.labels if value]
            if not labels or self.announced(flow) or any(tag in self.registry for tag in flow.header_tags):
                continue
            count += 1
            matched += any(self.tag_of_label(value) is not None for value in labels)
            # A host draws one for a flow, and a new one after trouble on the path.
            expected += 1 - (1 - probability) ** len(labels)
        return count, matched, expected

    def _strand(self, time_ns: int, packet: Packet) -> Strand:
        ports = self._ports_of_fragment(packet) if packet.fragment else packet.ports
        _, protocol, endpoints, _, _, flow_label, traffic_class, header_tag, *_ = packet
        key = (endpoints, ports, protocol, flow_label, traffic_class, header_tag)
        found = self._strands.get(key)
        if found is not None:
            return found
        tag = self._tag_of(packet)
        is_untold = tag is None and flow_label is None
        carrier = carrier_of(tag, packet.header_tag)
        series = self._untold if is_untold else self._series.setdefault((tag, carrier), {})
        if len(self._strands) >= self._strands_kept:
            place = (packet.version, tag, is_untold)
            if place not in self._beyond:
                self._beyond[place] = Strand(tag, series, flow_label)
            return self._beyond[place]
        tuple5 = (endpoints, ports, protocol)
        flow = self._flows.get(tuple5)
        if flow is None:
            flow = self._flows[tuple5] = Flow(packet.version, tuple5, time_ns)
        strand = Strand(tag, series, flow_label, traffic_class, header_tag)
        self._strands[key] = strand
        flow.strands.append(strand)
        return strand

    def _tag_of(self, packet: Packet) -> Tag | None:
        """The one tag that a packet counts for: the extension header's, which nobody draws at random, comes first."""
        if packet.header_tag in self.registry:
            return packet.header_tag
        return self.tag_of_label(packet.label) if packet.label else None

    def _ports_of_fragment(self, packet: Packet) -> bytes:
        """Only the first fragment has the ports; the others follow it, most often at once."""
        key = (packet.endpoints, packet.protocol, packet.fragment)
        if not packet.ports:
            return self._fragments.get(key, b"")
        if len(self._fragments) >= FRAGMENTS_KEPT:
            del self._fragments[next(iter(self._fragments))]
        self._fragments[key] = packet.ports
        return packet.ports
