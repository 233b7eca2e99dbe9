"""Tunnels: where the packet begins that another one carries, and what it is. Nothing is raised.

Formats: RFC 2003 (IPv4 in IP), RFC 2473 and RFC 4213 (IPv6 in IP), RFC 2784 and RFC 2890 (GRE), RFC 7348 (VXLAN),
RFC 8926 (Geneve), RFC 3032 (MPLS), RFC 4385 (the control word of a pseudowire), draft-foschiano-erspan (mirrored
traffic).
What is encrypted cannot be looked into.
"""

from __future__ import annotations

from typing import NamedTuple

IPV4_TYPE = 0x0800
IPV6_TYPE = 0x86DD
ETHERNET_TYPE = 0x6558  # "transparent Ethernet bridging": a whole frame
MPLS_TYPES = (0x8847, 0x8848)
_ERSPAN_TYPE = 0x88BE

_IN_IP = {4: IPV4_TYPE, 41: IPV6_TYPE}
GRE = 47
PROTOCOLS = frozenset({*_IN_IP, GRE})
_VXLAN_PORTS = (4789, 8472)  # IANA's, and that of Linux from before there was one
_GENEVE_PORT = 6081
PORTS = frozenset({*_VXLAN_PORTS, _GENEVE_PORT})
PORT_OCTETS = frozenset(port.to_bytes(2, "big") for port in PORTS)

_UDP_OCTETS = 8
_VXLAN_START, _VXLAN_OCTETS = b"\x08\0\0\0", 8
_GENEVE_OCTETS = 8
_GRE_CHECKSUM, _GRE_KEY, _GRE_SEQUENCE = 0x8000, 0x2000, 0x1000
_GRE_OTHER = 0x4007  # routing, which RFC 2784 did away with, and any version but 0
_ERSPAN_OCTETS = 8
_MPLS_OCTETS, _MPLS_LAST, _MPLS_MAX = 4, 0x01, 16


class Inside(NamedTuple):
    """What is carried: its Ethernet type, and the offset at which it begins."""

    kind: int
    at: int


def inside(data: bytes, at: int, protocol: int, destination_port: int) -> Inside | None:
    """What a packet carries whose upper layer begins at an offset; None when it is no tunnel's that is known here."""
    if protocol in _IN_IP:
        return Inside(_IN_IP[protocol], at)
    if protocol == GRE:
        return _in_gre(data, at)
    at += _UDP_OCTETS
    return _in_geneve(data, at) if destination_port == _GENEVE_PORT else _in_vxlan(data, at)


def behind_labels(data: bytes, at: int) -> Inside | None:
    """What stands behind the stack of MPLS labels that begins at an offset.

    Nothing in it says what that is. An IP packet is taken for one by its version; a pseudowire by its control word.
    """
    for _ in range(_MPLS_MAX):
        entry = data[at : at + _MPLS_OCTETS]
        at += _MPLS_OCTETS
        if len(entry) < _MPLS_OCTETS or len(data) <= at:
            return None
        if entry[2] & _MPLS_LAST:
            kind = {0: ETHERNET_TYPE, 4: IPV4_TYPE, 6: IPV6_TYPE}.get(data[at] >> 4)
            return None if kind is None else Inside(kind, at + 4 if kind == ETHERNET_TYPE else at)
    return None


def _in_gre(data: bytes, at: int) -> Inside | None:
    start = data[at : at + 4]
    flags, kind = int.from_bytes(start[:2], "big"), int.from_bytes(start[2:], "big")
    if len(start) < 4 or flags & _GRE_OTHER:  # noqa: PLR2004
        return None
    at += 4 * (1 + sum(bool(flags & option) for option in (_GRE_CHECKSUM, _GRE_KEY, _GRE_SEQUENCE)))
    if kind == _ERSPAN_TYPE:  # of its first version there is no header, and no sequence number
        return Inside(ETHERNET_TYPE, at + (_ERSPAN_OCTETS if flags & _GRE_SEQUENCE else 0))
    return Inside(kind, at)


def _in_vxlan(data: bytes, at: int) -> Inside | None:
    header = data[at : at + _VXLAN_OCTETS]
    is_one = header[:4] == _VXLAN_START and header[7:] == b"\0"
    return Inside(ETHERNET_TYPE, at + _VXLAN_OCTETS) if is_one else None


def _in_geneve(data: bytes, at: int) -> Inside | None:
    header = data[at : at + _GENEVE_OCTETS]
    if len(header) < _GENEVE_OCTETS or header[0] >> 6 or header[7]:
        return None
    return Inside(int.from_bytes(header[2:4], "big"), at + _GENEVE_OCTETS + 4 * (header[0] & 0x3F))
