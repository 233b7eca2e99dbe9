"""Packets by hand, for BPF_PROG_TEST_RUN."""

from __future__ import annotations

import socket
import struct

ETHERNET = bytes.fromhex("020000000002020000000001")
IPV6, IPV4, ARP = 0x86DD, 0x0800, 0x0806
TCP, UDP, ICMPV6 = 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
SRC, DST = "2001:db8::1", "2001:db8::2"


def tcp(source: int = 1094, destination: int = 43720) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 1, 2, 0x50, 0x10, 512, 0, 0) + b"payload"


def udp(source: int = 1094, destination: int = 43720) -> bytes:
    return struct.pack("!HHHH", source, destination, 15, 0) + b"payload"


def ipv6(
    payload: bytes, protocol: int = TCP, *, traffic_class: int = 0, label: int = 0, length: int | None = None
) -> bytes:
    word = 6 << 28 | traffic_class << 20 | label
    octets = len(payload) if length is None else length
    addresses = socket.inet_pton(socket.AF_INET6, SRC) + socket.inet_pton(socket.AF_INET6, DST)
    return struct.pack("!IHBB", word, octets, protocol, 64) + addresses + payload


def ethernet(payload: bytes, protocol: int = IPV6, *tags: tuple[int, int]) -> bytes:
    """A frame; tags are (ethertype, VLAN id), outermost first."""
    following = [*(tag[0] for tag in tags[1:]), protocol][: len(tags)]
    kinds = b"".join(struct.pack("!HH", tag[1], after) for tag, after in zip(tags, following, strict=True))
    first = tags[0][0] if tags else protocol
    return ETHERNET + struct.pack("!H", first) + kinds + payload


def extension(next_header: int, units: int = 0) -> bytes:
    """An options or routing header of 8 * (units + 1) octets, padded with PadN."""
    rest = 8 * (units + 1) - 2
    return bytes((next_header, units, 1, rest - 2)) + bytes(rest - 2)


def jumbo(next_header: int, length: int) -> bytes:
    """What BIG TCP puts in front (RFC 2675)."""
    return struct.pack("!BBBBI", next_header, 0, 0xC2, 4, length)


def fragment(next_header: int, offset: int, *, more: bool = True) -> bytes:
    """offset in units of 8 octets."""
    return struct.pack("!BBHI", next_header, 0, offset << 3 | more, 7)
