"""A flow, and the strands of it: packets that look the same to an observer."""

from __future__ import annotations

import ipaddress
from typing import Literal

import msgspec

from scitags_collector.announcements import PROTOCOLS, Tuple5
from scitags_core.flow import FlowKey, Transport
from scitags_core.tag import Tag

# A flow of more buckets counts for the last of them.
SPREAD_BUCKETS = 100_000
Carrier = Literal["label", "header"]  # of a tag: the flow label, or an extension header
_NAMES: dict[int, Transport] = {PROTOCOLS["tcp"]: "tcp", PROTOCOLS["udp"]: "udp"}


class Sum(msgspec.Struct):
    """Packets and their IP octets."""

    packets: int = 0
    octets: int = 0

    def add(self, packets: int, octets: int) -> None:
        self.packets += packets
        self.octets += octets


class Strand(msgspec.Struct, eq=False):
    """The packets of one flow that bear the same.

    tag       what they count for
    series    octets of that tag from that carrier by number of the time bucket, shared by all such strands
    label     None where an exporter does not tell it
    last      nanoseconds since 1970
    told      the packets and octets that were written down already, where that is done meanwhile
    """

    tag: Tag | None
    series: dict[int, int]
    label: int | None = 0
    traffic_class: int = 0
    header_tag: Tag | None = None
    packets: int = 0
    octets: int = 0
    last: int = 0
    told: tuple[int, int] = (0, 0)

    def add(self, time_ns: int, octets: int, bucket: int) -> None:
        """Take a packet."""
        self.packets += 1
        self.octets += octets
        self.last = max(self.last, time_ns)
        number = time_ns // bucket
        self.series[number] = self.series.get(number, 0) + octets

    def add_many(self, first: int, last: int, packets: int, octets: int, bucket: int) -> None:
        """Take packets that an exporter counted from first to last; their octets are spread evenly over that time."""
        self.packets += packets
        self.octets += octets
        self.last = max(self.last, last)
        start, end = first // bucket, last // bucket
        count = end - start + 1
        if count > SPREAD_BUCKETS:
            start, count = end, 1
        share, rest = divmod(octets, count)
        series = self.series
        for number in range(start, end + 1):
            series[number] = series.get(number, 0) + share
        series[end] += rest

    @property
    def carrier(self) -> Carrier | None:
        """Where the tag that counts is from; None without one."""
        return carrier_of(self.tag, self.header_tag)

    @property
    def is_untold(self) -> bool:
        """Whether nobody can say if these packets are tagged."""
        return self.label is None and self.tag is None


def carrier_of(tag: Tag | None, header_tag: Tag | None) -> Carrier | None:
    """Where the tag that a packet counts for is from, given that of its extension header."""
    if tag is None:
        return None
    return "header" if header_tag == tag else "label"


class Flow(msgspec.Struct, eq=False):
    """One direction of a connection, as seen. first is when, in nanoseconds since 1970."""

    version: int
    tuple5: Tuple5
    first: int
    strands: list[Strand] = msgspec.field(default_factory=list)

    @property
    def key(self) -> FlowKey | None:
        """The 5-tuple in words; None for what is neither TCP nor UDP, or whose ports are not known."""
        _, ports, protocol = self.tuple5
        if protocol not in _NAMES or not ports:
            return None
        source, destination = self.addresses
        source_port, destination_port = int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")
        return FlowKey.of(source, source_port, destination, destination_port, _NAMES[protocol])

    @property
    def addresses(self) -> tuple[str, str]:
        """Source and destination."""
        both = self.tuple5[0]
        half = len(both) // 2
        return str(ipaddress.ip_address(both[:half])), str(ipaddress.ip_address(both[half:]))

    @property
    def protocol(self) -> int:
        """The number of the protocol above IP."""
        return self.tuple5[2]

    @property
    def last(self) -> int:
        return max(strand.last for strand in self.strands)

    @property
    def total(self) -> Sum:
        total = Sum()
        for strand in self.strands:
            total.add(strand.packets, strand.octets)
        return total

    @property
    def tags(self) -> dict[Tag | None, Sum]:
        """Its packets by the tag that they count for, without those of which an exporter tells no label."""
        found: dict[Tag | None, Sum] = {}
        for strand in self.strands:
            if strand.is_untold:
                continue
            found.setdefault(strand.tag, Sum()).add(strand.packets, strand.octets)
        return found

    @property
    def untold(self) -> Sum:
        """Its packets of which nobody can say whether they are tagged: an exporter told of them without a label."""
        total = Sum()
        for strand in self.strands:
            if strand.is_untold:
                total.add(strand.packets, strand.octets)
        return total

    @property
    def labels(self) -> dict[int, Sum]:
        """Its packets by flow label; nothing for IPv4, which has none, and where an exporter does not tell it."""
        found: dict[int, Sum] = {}
        for strand in self.strands if self.version == 6 else ():  # noqa: PLR2004
            if strand.label is not None:
                found.setdefault(strand.label, Sum()).add(strand.packets, strand.octets)
        return found

    @property
    def header_tags(self) -> dict[Tag, Sum]:
        """Its packets by the tag in an extension header, listed or not; those without one are left out."""
        found: dict[Tag, Sum] = {}
        for strand in self.strands:
            if strand.header_tag is not None:
                found.setdefault(strand.header_tag, Sum()).add(strand.packets, strand.octets)
        return found

    @property
    def traffic_classes(self) -> dict[int, int]:
        """Its packets by DSCP and ECN, eight bits."""
        found: dict[int, int] = {}
        for strand in self.strands:
            found[strand.traffic_class] = found.get(strand.traffic_class, 0) + strand.packets
        return found
