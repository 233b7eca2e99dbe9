"""Octets of a captured packet to what an observer needs of it. Nothing is raised, whatever the octets are.

Formats: RFC 8200 (IPv6 and its extension headers), RFC 2675 (jumbograms, as BIG TCP makes them), RFC 791 (IPv4),
IEEE 802.1Q and 802.1ad (VLAN tags), and the link types of capture files.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from scitags_core import exthdr, firefly
from scitags_core.errors import TagError
from scitags_core.tag import Tag

TCP = 6
UDP = 17
_HOP_BY_HOP = 0
_ROUTING = 43
_FRAGMENT = 44
_DESTINATION = 60
_OPTIONS = (_HOP_BY_HOP, _DESTINATION)
_JUMBO_OPTION = b"\xc2\x04"

_IPV6 = 0x86DD
_IPV4 = 0x0800
_VLAN = (0x8100, 0x88A8, 0x9100)
_IPV6_OCTETS = 40
_IPV4_OCTETS = 20
_UDP_OCTETS = 8
_MAX_HEADERS = 8

_IPV6_START = struct.Struct("!IHB")
_PORTS = struct.Struct("!HH")


class Packet(NamedTuple):
    """An IP packet.

    endpoints      source and destination address as octets, one after the other: 32 of them for IPv6, 8 for IPv4
    ports          source and destination port as octets; empty when the packet has none
    octets         of the whole IP packet on the wire, whatever of it was captured
    label          the flow label; 0 for IPv4
    traffic_class  DSCP and ECN, eight bits (the type of service of IPv4)
    header_tag     the tag in an extension header
    payload        of a UDP datagram to the port of fireflies; empty otherwise
    """

    version: int
    protocol: int
    endpoints: bytes
    ports: bytes
    octets: int
    label: int
    traffic_class: int
    header_tag: Tag | None
    payload: bytes


def parse_ethernet(frame: bytes) -> Packet | None:
    """The IP packet in an Ethernet frame, behind any VLAN tags; None when there is none."""
    at = 12
    while True:
        protocol = int.from_bytes(frame[at : at + 2], "big")
        if protocol not in _VLAN:
            break
        at += 4
    return parse_ip(frame, at + 2) if protocol in (_IPV6, _IPV4) else None


def parse_ip(data: bytes, at: int = 0) -> Packet | None:
    """The IP packet that begins at an offset; None when it is none or its fixed header is cut short."""
    if len(data) <= at:
        return None
    version = data[at] >> 4
    if version == 6:  # noqa: PLR2004
        return _parse_ipv6(data, at)
    return _parse_ipv4(data, at) if version == 4 else None  # noqa: PLR2004


def _parse_ipv6(data: bytes, at: int) -> Packet | None:
    next_at = at + _IPV6_OCTETS
    if len(data) < next_at:
        return None
    word, length, protocol = _IPV6_START.unpack_from(data, at)
    endpoints = data[at + 8 : next_at]
    octets = _IPV6_OCTETS + length
    tag: Tag | None = None
    if protocol not in (TCP, UDP):
        found = _walk_headers(data, next_at, protocol)
        if length == 0 and found.jumbo:
            octets = _IPV6_OCTETS + found.jumbo
        protocol, next_at, tag = found.protocol, found.at, found.tag
    ports = data[next_at : next_at + 4] if next_at and protocol in (TCP, UDP) else b""
    if len(ports) < 4:  # noqa: PLR2004
        ports = b""
    payload = _firefly(data, next_at, protocol, ports)
    return Packet(6, protocol, endpoints, ports, octets, word & 0xFFFFF, word >> 20 & 0xFF, tag, payload)


class _Headers(NamedTuple):
    protocol: int
    at: int  # where the upper layer begins; 0 when its beginning is not in this packet
    tag: Tag | None
    jumbo: int


def _walk_headers(data: bytes, at: int, protocol: int) -> _Headers:
    """Step over extension headers, and see what is in them."""
    tag: Tag | None = None
    jumbo = 0
    for _ in range(_MAX_HEADERS):
        if protocol == _FRAGMENT:
            header = data[at : at + 8]
            if len(header) < 8 or header[2] or header[3] & 0xF8:  # noqa: PLR2004
                return _Headers(header[0] if header else protocol, 0, tag, jumbo)
        elif protocol in _OPTIONS or protocol == _ROUTING:
            header = data[at : at + 8 * (data[at + 1] + 1)] if len(data) > at + 1 else b""
            if not header:
                return _Headers(protocol, 0, tag, jumbo)
        else:
            return _Headers(protocol, at, tag, jumbo)
        if protocol in _OPTIONS:
            tag = tag or _tag_in(header)
            if header[2:4] == _JUMBO_OPTION:
                jumbo = int.from_bytes(header[4:8], "big")
        protocol, at = header[0], at + len(header)
    return _Headers(protocol, 0, tag, jumbo)


def _tag_in(header: bytes) -> Tag | None:
    try:
        return exthdr.decode(header).tag
    except TagError:
        return None


def _parse_ipv4(data: bytes, at: int) -> Packet | None:
    if len(data) < at + _IPV4_OCTETS:
        return None
    protocol = data[at + 9]
    next_at = at + 4 * (data[at] & 0x0F)
    is_first = not (data[at + 6] & 0x1F or data[at + 7])
    ports = data[next_at : next_at + 4] if is_first and protocol in (TCP, UDP) else b""
    if len(ports) < 4:  # noqa: PLR2004
        ports = b""
    octets = int.from_bytes(data[at + 2 : at + 4], "big")
    payload = _firefly(data, next_at, protocol, ports)
    return Packet(4, protocol, data[at + 12 : at + 20], ports, octets, 0, data[at + 1], None, payload)


def _firefly(data: bytes, at: int, protocol: int, ports: bytes) -> bytes:
    if protocol != UDP or not ports or _PORTS.unpack(ports)[1] != firefly.PORT:
        return b""
    length = int.from_bytes(data[at + 4 : at + 6], "big")
    return data[at + _UDP_OCTETS : at + length]
