"""Octets of a captured packet to what an observer needs of it. Nothing is raised, whatever the octets are.

Formats: RFC 8200 (IPv6 and its extension headers), RFC 2675 (jumbograms, as BIG TCP makes them), RFC 791 (IPv4),
IEEE 802.1Q and 802.1ad (VLAN tags). What stands in front of them: scitags_collector.link; what carries them:
scitags_collector.tunnels. Of a packet in a packet, the inner one is what was sent.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from scitags_collector import tunnels
from scitags_core import exthdr, firefly
from scitags_core.errors import TagError
from scitags_core.tag import Tag

TCP = 6
UDP = 17
IPV6_OCTETS = 40
PORTS_OCTETS = 4
_HOP_BY_HOP = 0
_ROUTING = 43
_FRAGMENT = 44
_DESTINATION = 60
_OPTIONS = (_HOP_BY_HOP, _DESTINATION)
_JUMBO_OPTION = b"\xc2\x04"

_VLAN = (0x8100, 0x88A8, 0x9100)
_ETHERTYPE_AT = 12
_IPV4_OCTETS = 20
_UDP_OCTETS = 8
_FRAGMENT_OCTETS = 8
_MAX_HEADERS = 8
_MAX_TUNNELS = 4

_IPV6_START = struct.Struct("!IHB")
_IPV4_START = struct.Struct("!BBHHHBB")
_FIREFLY_PORT = firefly.PORT.to_bytes(2, "big")


class Packet(NamedTuple):
    """An IP packet.

    endpoints       source and destination address as octets, one after the other: 32 of them for IPv6, 8 for IPv4
    ports           source and destination port as octets; empty when the packet has none, or they were not captured
    octets          of the whole IP packet on the wire, whatever of it was captured
    label           the flow label; 0 for IPv4; None where an exporter told of the packet, and not of its label
    traffic_class   DSCP and ECN, eight bits (the type of service of IPv4)
    header_tag      the tag in an extension header
    payload         of a UDP datagram to the port of fireflies; empty otherwise
    fragment        the identification that the fragments of one packet share; empty for a whole packet
    depth           in how many tunnels it was
    """

    version: int
    protocol: int
    endpoints: bytes
    ports: bytes
    octets: int
    label: int | None
    traffic_class: int
    header_tag: Tag | None
    payload: bytes
    fragment: bytes = b""
    depth: int = 0


def parse_ethernet(frame: bytes, wire_length: int = 0) -> Packet | None:
    """The IP packet in an Ethernet frame, behind any VLAN tags; None when there is none.

    wire_length is the frame's length before it was cut for the capture, where that is known.
    """
    return parse_typed(frame, wire_length, _ETHERTYPE_AT, _ETHERTYPE_AT + 2)


def parse_typed(data: bytes, wire_length: int, type_at: int, at: int, depth: int = 0) -> Packet | None:
    """The IP packet behind a link header with its Ethernet type at type_at and its payload at at."""
    kind = int.from_bytes(data[type_at : type_at + 2], "big")
    while kind in _VLAN:
        kind = int.from_bytes(data[at + 2 : at + 4], "big")
        at += 4
    return _parse_kind(data, wire_length, kind, at, depth)


def parse_ip(data: bytes, wire_length: int = 0, at: int = 0, depth: int = 0) -> Packet | None:
    """The IP packet that begins at an offset, or the one that it carries; None when there is none.

    depth says in how many tunnels it is.
    """
    if len(data) <= at:
        return None
    # What is behind `at` on the wire: all that tells the length of a packet above 64 KB without a jumbo option.
    behind = max(wire_length, len(data)) - at
    version = data[at] >> 4
    if version == 6:  # noqa: PLR2004
        found, next_at = _parse_ipv6(data, at, behind, depth)
    elif version == 4:  # noqa: PLR2004
        found, next_at = _parse_ipv4(data, at, behind, depth)
    else:
        return None
    if found is None or (depth and wire_length and found.octets > behind):
        return None  # what is longer than its tunnel's packet is a part of one, or no packet at all
    if not next_at or not _may_carry(found) or depth >= _MAX_TUNNELS:
        return found
    inner = tunnels.inside(data, next_at, found.protocol, int.from_bytes(found.ports[2:], "big"))
    carried = _parse_kind(data, wire_length, inner.kind, inner.at, depth + 1) if inner else None
    return carried or found


def _may_carry(packet: Packet) -> bool:
    return packet.protocol in tunnels.PROTOCOLS or (packet.protocol == UDP and packet.ports[2:] in tunnels.PORT_OCTETS)


def _parse_kind(data: bytes, wire_length: int, kind: int, at: int, depth: int) -> Packet | None:
    """The IP packet in what has this Ethernet type and begins at an offset."""
    if kind in (tunnels.IPV6_TYPE, tunnels.IPV4_TYPE):
        return parse_ip(data, wire_length, at, depth)
    if kind == tunnels.ETHERNET_TYPE and depth <= _MAX_TUNNELS:
        return parse_typed(data, wire_length, at + _ETHERTYPE_AT, at + _ETHERTYPE_AT + 2, depth)
    if kind in tunnels.MPLS_TYPES and depth < _MAX_TUNNELS:
        inner = tunnels.behind_labels(data, at)
        return _parse_kind(data, wire_length, inner.kind, inner.at, depth + 1) if inner else None
    return None


def _parse_ipv6(data: bytes, at: int, behind: int, depth: int) -> tuple[Packet | None, int]:
    """The packet, and where its upper layer begins; 0 where that is not in it."""
    next_at = at + IPV6_OCTETS
    if len(data) < next_at:
        return None, 0
    word, length, protocol = _IPV6_START.unpack_from(data, at)
    endpoints = data[at + 8 : next_at]
    tag: Tag | None = None
    fragment = b""
    if protocol not in (TCP, UDP):
        found = _walk_headers(data, next_at, protocol)
        length = length or found.jumbo
        protocol, next_at, tag, fragment = found.protocol, found.at, found.tag, found.fragment
    octets = IPV6_OCTETS + length if length or protocol not in (TCP, UDP) else behind
    ports = _ports(data, next_at, protocol)
    payload = _firefly(data, next_at, protocol, ports)
    label, traffic_class = word & 0xFFFFF, word >> 20 & 0xFF
    return (
        Packet(6, protocol, endpoints, ports, octets, label, traffic_class, tag, payload, fragment, depth),
        next_at,
    )


class _Headers(NamedTuple):
    protocol: int
    at: int  # where the upper layer begins; 0 when its beginning is not in this packet
    tag: Tag | None
    jumbo: int
    fragment: bytes


def _walk_headers(data: bytes, at: int, protocol: int) -> _Headers:
    """Step over extension headers, and see what is in them."""
    tag: Tag | None = None
    jumbo = 0
    fragment = b""
    for _ in range(_MAX_HEADERS):
        if protocol == _FRAGMENT:
            header = data[at : at + _FRAGMENT_OCTETS]
            if len(header) < _FRAGMENT_OCTETS:
                return _Headers(protocol, 0, tag, jumbo, fragment)
            is_later, is_first_of_many = header[2] or header[3] & 0xF8, header[3] & 0x01
            fragment = header[4:] if is_later or is_first_of_many else b""
            if is_later:
                return _Headers(header[0], 0, tag, jumbo, fragment)
        elif protocol in _OPTIONS or protocol == _ROUTING:
            header = data[at : at + 8 * (data[at + 1] + 1)] if len(data) > at + 1 else b""
            if not header:
                return _Headers(protocol, 0, tag, jumbo, fragment)
        else:
            return _Headers(protocol, at, tag, jumbo, fragment)
        if protocol in _OPTIONS:
            tag = tag or _tag_in(header)
            if header[2:4] == _JUMBO_OPTION:
                jumbo = int.from_bytes(header[4:8], "big")
        protocol, at = header[0], at + len(header)
    return _Headers(protocol, 0, tag, jumbo, fragment)


def _tag_in(header: bytes) -> Tag | None:
    try:
        return exthdr.decode(header).tag
    except TagError:
        return None


def _parse_ipv4(data: bytes, at: int, behind: int, depth: int) -> tuple[Packet | None, int]:
    """As _parse_ipv6."""
    if len(data) < at + _IPV4_OCTETS:
        return None, 0
    start, traffic_class, length, identification, offset, _, protocol = _IPV4_START.unpack_from(data, at)
    next_at = at + 4 * (start & 0x0F) if not offset & 0x1FFF else 0
    ports = _ports(data, next_at, protocol)
    # The kernel leaves the length at 0 where it does not fit into 16 bits.
    octets = length or behind
    payload = _firefly(data, next_at, protocol, ports)
    fragment = identification.to_bytes(2, "big") if offset & 0x3FFF else b""
    endpoints = data[at + 12 : at + 20]
    return (
        Packet(4, protocol, endpoints, ports, octets, 0, traffic_class, None, payload, fragment, depth),
        next_at,
    )


def _ports(data: bytes, at: int, protocol: int) -> bytes:
    ports = data[at : at + PORTS_OCTETS] if at and protocol in (TCP, UDP) else b""
    return ports if len(ports) == PORTS_OCTETS else b""


def _firefly(data: bytes, at: int, protocol: int, ports: bytes) -> bytes:
    if protocol != UDP or ports[2:] != _FIREFLY_PORT:
        return b""
    length = int.from_bytes(data[at + 4 : at + 6], "big")
    return data[at + _UDP_OCTETS : at + length]
