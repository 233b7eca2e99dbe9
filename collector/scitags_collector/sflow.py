"""sFlow version 5: datagrams to sampled packets.

Format: sFlow.org, "sFlow Version 5" (July 2004). Samples of packets are read, with the beginning of the packet in
them (as most agents have it) or with addresses and ports alone, which tell no flow label. Counters are stepped over.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterator

from scitags_collector.exported import Exported, Exporter, Malformed, Sequence
from scitags_collector.packet import UDP, Packet, parse_ethernet, parse_ip

VERSION = 5
KIND = "sFlow v5"
_HEAD = struct.Struct("!II")
_AGENT_OCTETS = {1: 4, 2: 16}
_COUNTS = struct.Struct("!IIII")  # sub-agent, sequence number, uptime, samples
_FLOW_SAMPLE, _EXPANDED_FLOW_SAMPLE = 1, 3
# Sequence number, source, rate, pool, drops, input, output, records; the expanded one has wider interfaces.
_SAMPLES = {_FLOW_SAMPLE: (struct.Struct("!8I"), 2), _EXPANDED_FLOW_SAMPLE: (struct.Struct("!11I"), 3)}
_RAW_HEADER, _IPV4_DATA, _IPV6_DATA = 1, 3, 4
_RAW = struct.Struct("!IIII")  # protocol, frame length, octets stripped, octets of header that follow
_ETHERNET, _IPV4, _IPV6 = 1, 11, 12
_IPV4_RECORD = struct.Struct("!II8sIIII")  # length, protocol, addresses, ports, flags, type of service
_IPV6_RECORD = struct.Struct("!II32sIIII")
_UDP_OCTETS = 8

SessionOf = Callable[[str, str], tuple[Exporter, Sequence]]


def decode(datagram: bytes, now: int, session_of: SessionOf) -> Iterator[Exported]:
    """The sampled packets of a datagram, which came at now (nanoseconds since 1970; samples bear no time).

    session_of gives the exporter and its sequence by kind and domain. Raises Malformed, where there is any after all
    that comes before the damage.
    """
    try:
        _, family = _HEAD.unpack_from(datagram)
        octets = _AGENT_OCTETS.get(family, 0)
        if not octets:
            raise Malformed(f"sFlow: an agent's address of type {family}")
        at = _HEAD.size + octets
        agent = ipaddress.ip_address(datagram[_HEAD.size : at])
        sub_agent, number, _, count = _COUNTS.unpack_from(datagram, at)
    except (struct.error, ValueError):
        raise Malformed("sFlow: cut short within its header") from None
    exporter, sequence = session_of(KIND, f"{agent} {sub_agent}")
    exporter.datagrams += 1
    exporter.lost += sequence.missing(number, number + 1)
    for kind, sample in _parts(datagram, at + _COUNTS.size, count):
        if kind not in _SAMPLES:
            continue
        layout, rate_at = _SAMPLES[kind]
        try:
            values = layout.unpack_from(sample)
        except struct.error:
            raise Malformed("sFlow: a sample is cut short") from None
        rate = max(1, values[rate_at])
        packet = _packet(sample, layout.size, values[-1])
        if packet is None:
            exporter.unusable += 1
            continue
        exporter.count(packet, rate)
        yield Exported(packet, now, now, rate, rate * packet.octets)


def _parts(data: bytes, at: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Samples of a datagram, or records of a sample: their types and contents."""
    for _ in range(count):
        if at + _HEAD.size > len(data):
            raise Malformed("sFlow: fewer samples or records than it says")
        kind, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if at + length > len(data):
            raise Malformed(f"sFlow: a part of {length} octets where {len(data) - at} are left")
        yield kind, data[at : at + length]
        at += length


def _packet(sample: bytes, at: int, count: int) -> Packet | None:
    """What a sample tells of its packet, best of all by the packet's own beginning."""
    described: Packet | None = None
    for kind, record in _parts(sample, at, count):
        try:
            if kind == _RAW_HEADER:
                packet = _from_header(record)
                if packet is not None:
                    return packet
            elif kind == _IPV4_DATA:
                described = described or _from_fields(4, _IPV4_RECORD.unpack_from(record))
            elif kind == _IPV6_DATA:
                described = described or _from_fields(6, _IPV6_RECORD.unpack_from(record))
        except struct.error:
            raise Malformed("sFlow: a record is cut short") from None
    return described


def _from_header(record: bytes) -> Packet | None:
    protocol, length, _, captured = _RAW.unpack_from(record)
    data = record[_RAW.size : _RAW.size + captured]
    if protocol == _ETHERNET:
        packet = parse_ethernet(data, length)
    else:
        packet = parse_ip(data, length) if protocol in (_IPV4, _IPV6) else None
    return packet and whole_firefly_only(packet, data)


def whole_firefly_only(packet: Packet, data: bytes) -> Packet:
    """The packet of a sample, without the firefly that it may hold when that is cut short."""
    if not packet.payload:
        return packet
    start = data.rfind(packet.payload) - _UDP_OCTETS
    told = int.from_bytes(data[start + 4 : start + 6], "big")
    return (
        packet if packet.protocol == UDP and told == _UDP_OCTETS + len(packet.payload) else packet._replace(payload=b"")
    )


def _from_fields(version: int, fields: tuple[int, int, bytes, int, int, int, int]) -> Packet:
    octets, protocol, endpoints, source, destination, _, traffic_class = fields
    ports = b"".join((port & 0xFFFF).to_bytes(2, "big") for port in (source, destination))
    has_ports = protocol in (6, 17)
    label = None if version == 6 else 0  # noqa: PLR2004
    return Packet(
        version, protocol & 0xFF, endpoints, ports if has_ports else b"", octets, label, traffic_class & 0xFF, None, b""
    )
