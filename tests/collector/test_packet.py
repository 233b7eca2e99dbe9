"""Captured octets to packets: tables, truncations, and whatever hypothesis thinks of."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_collector.link import OF_FILES
from scitags_collector.packet import Packet, parse_ethernet, parse_ip
from scitags_core import exthdr
from scitags_core.tag import Tag
from tests.netns import packets as p

PORTS = struct.pack("!HH", 1094, 43720)
TAGGED = exthdr.encode(2, 15, p.TCP)
FIREFLY = struct.pack("!HHHH", 5000, 10514, 8 + 5, 0) + b"hello"


def parsed(frame: bytes) -> Packet:
    found = parse_ethernet(frame)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (p.ethernet(p.ipv6(p.tcp(), label=196664)), (6, p.TCP, PORTS, 67, 196664, None)),
        (p.ethernet(p.ipv6(p.udp(), p.UDP)), (6, p.UDP, PORTS, 55, 0, None)),
        (p.ethernet(p.ipv6(p.tcp(), label=7), p.IPV6, (0x8100, 5)), (6, p.TCP, PORTS, 67, 7, None)),
        (p.ethernet(p.ipv6(p.tcp(), label=7), p.IPV6, (0x88A8, 5), (0x8100, 6)), (6, p.TCP, PORTS, 67, 7, None)),
        (p.ethernet(p.ipv6(TAGGED + p.tcp(), p.DESTINATION)), (6, p.TCP, PORTS, 75, 0, Tag(2, 15))),
        (p.ethernet(p.ipv6(TAGGED + p.tcp(), p.HOP_BY_HOP)), (6, p.TCP, PORTS, 75, 0, Tag(2, 15))),
        (
            p.ethernet(p.ipv6(p.extension(p.DESTINATION, 1) + TAGGED + p.tcp(), p.ROUTING)),
            (6, p.TCP, PORTS, 91, 0, Tag(2, 15)),
        ),
        (
            p.ethernet(p.ipv6(p.jumbo(p.TCP, 100_000) + p.tcp(), p.HOP_BY_HOP, length=0)),
            (6, p.TCP, PORTS, 100_040, 0, None),
        ),
        (p.ethernet(p.ipv6(p.fragment(p.TCP, 0) + p.tcp(), p.FRAGMENT)), (6, p.TCP, PORTS, 75, 0, None)),
        (p.ethernet(p.ipv6(p.fragment(p.TCP, 5) + p.tcp(), p.FRAGMENT)), (6, p.TCP, b"", 75, 0, None)),
        (p.ethernet(p.ipv6(b"", p.ICMPV6)), (6, p.ICMPV6, b"", 40, 0, None)),
        (p.ethernet(p.ipv6(p.tcp()[:3])), (6, p.TCP, b"", 43, 0, None)),
        # Newer kernels leave the jumbo option out: only the frame's length tells.
        (p.ethernet(p.ipv6(p.tcp() + bytes(70_000), length=0)), (6, p.TCP, PORTS, 70_067, 0, None)),
    ],
)
def test_ipv6(frame: bytes, expected: tuple[object, ...]) -> None:
    found = parsed(frame)
    assert (found.version, found.protocol, found.ports, found.octets, found.label, found.header_tag) == expected
    assert found.payload == b""


def ipv4(payload: bytes, protocol: int = p.TCP, *, options: bytes = b"", fragment: int = 0) -> bytes:
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | words,
        0,
        4 * words + len(payload),
        1,
        fragment,
        64,
        protocol,
        0,
        b"\x0a\0\0\1",
        b"\x0a\0\0\2",
    )
    return p.ethernet(header + options + payload, p.IPV4)


@pytest.mark.parametrize(
    ("frame", "ports", "octets"),
    [
        (ipv4(p.tcp()), PORTS, 47),
        (ipv4(p.udp(), p.UDP, options=bytes(8)), PORTS, 43),
        (ipv4(p.tcp(), fragment=0x2000), PORTS, 47),
        (ipv4(p.tcp(), fragment=0x2001), b"", 47),
        (ipv4(p.tcp(), fragment=0x4000), PORTS, 47),
        (ipv4(b"", 1), b"", 20),
    ],
)
def test_ipv4(frame: bytes, ports: bytes, octets: int) -> None:
    found = parsed(frame)
    assert (found.version, found.ports, found.octets) == (4, ports, octets)
    assert found.endpoints == b"\x0a\0\0\1\x0a\0\0\2"


@pytest.mark.parametrize("value", [0, 1, 2, 3, 0xB8, 0xFF])
def test_the_traffic_class_of_both(value: int) -> None:
    assert parsed(p.ethernet(p.ipv6(p.tcp(), traffic_class=value, label=7))).traffic_class == value
    frame = bytearray(ipv4(p.tcp()))
    frame[15] = value
    assert parsed(bytes(frame)).traffic_class == value


def test_fireflies_come_whole_over_both() -> None:
    for frame in (
        p.ethernet(p.ipv6(FIREFLY, p.UDP)),
        ipv4(FIREFLY, p.UDP),
        p.ethernet(p.ipv6(FIREFLY, p.UDP)) + bytes(9),
    ):
        assert parsed(frame).payload == b"hello"


@pytest.mark.parametrize(
    "header",
    [
        b"\x06\0\x1e\x03\x00\x00\x0f\0",  # experiment 0
        b"\x06\0\x1e\x03\x04\x00\x0f\0",  # experiment 1024
        b"\x06\0\x1e\x03\x00\x02\x40\0",  # activity 64
        b"\x06\0\x1e\x07\x00\x02\x0f\0",  # runs past the end
    ],
)
def test_a_malformed_option_is_no_tag(header: bytes) -> None:
    assert parsed(p.ethernet(p.ipv6(header + p.tcp(), p.DESTINATION))).header_tag is None


@pytest.mark.parametrize("frame", [b"", bytes(13), p.ethernet(bytes(40), p.ARP), p.ethernet(b"\x70" + bytes(60))])
def test_what_is_no_ip_packet(frame: bytes) -> None:
    assert parse_ethernet(frame) is None


def test_a_frame_that_was_cut_for_the_capture_has_its_length_on_the_wire() -> None:
    jumbo = p.ethernet(p.ipv6(p.tcp(), length=0))
    found = parse_ethernet(jumbo, 14 + 40 + 90_000)
    assert found is not None
    assert found.octets == 90_040
    older = bytearray(ipv4(p.tcp() + bytes(100)))
    older[16:18] = b"\0\0"
    again = parse_ethernet(bytes(older[:64]), 14 + 80_000)
    assert again is not None
    assert again.octets == 80_000


@pytest.mark.parametrize(
    ("frame", "fragment", "ports"),
    [
        (p.ethernet(p.ipv6(p.fragment(p.TCP, 0) + p.tcp(), p.FRAGMENT)), b"\0\0\0\7", PORTS),
        (p.ethernet(p.ipv6(p.fragment(p.TCP, 5, more=False) + p.tcp(), p.FRAGMENT)), b"\0\0\0\7", b""),
        # RFC 6946: a fragment of which there is but one
        (p.ethernet(p.ipv6(p.fragment(p.TCP, 0, more=False) + p.tcp(), p.FRAGMENT)), b"", PORTS),
        (ipv4(p.tcp(), fragment=0x2000), b"\0\1", PORTS),
        (ipv4(p.tcp(), fragment=0x0005), b"\0\1", b""),
        (ipv4(p.tcp(), fragment=0x4000), b"", PORTS),
    ],
)
def test_fragments_share_an_identification(frame: bytes, fragment: bytes, ports: bytes) -> None:
    assert (parsed(frame).fragment, parsed(frame).ports) == (fragment, ports)


def sll(payload: bytes, kind: int) -> bytes:
    return struct.pack("!HHH8sH", 0, 1, 6, bytes(8), kind) + payload


def sll2(payload: bytes, kind: int) -> bytes:
    return struct.pack("!HHIHBB8s", kind, 0, 2, 1, 0, 6, bytes(8)) + payload


IP6 = p.ipv6(p.tcp(), label=196664)
VLAN = struct.pack("!HH", 0x6005, p.IPV6)


@pytest.mark.parametrize(
    ("link_type", "frame"),
    [
        (0, struct.pack("<I", 10) + IP6),
        (0, struct.pack(">I", 30) + IP6),
        (1, p.ethernet(IP6)),
        (101, IP6),
        (108, struct.pack(">I", 24) + IP6),
        (113, sll(IP6, p.IPV6)),
        (113, sll(VLAN + IP6, 0x8100)),
        (229, IP6),
        (276, sll2(IP6, p.IPV6)),
        (276, sll2(VLAN + IP6, 0x88A8)),
    ],
)
def test_link_types(link_type: int, frame: bytes) -> None:
    link = OF_FILES[link_type]
    found = link.parse(frame, len(frame))
    assert found is not None
    assert (found.ports, found.label, found.octets) == (PORTS, 196664, 67)
    head = frame[: link.head]
    assert link.is_told_by(head) is (VLAN not in frame)
    if VLAN not in frame:
        assert head.endswith(PORTS)


@pytest.mark.parametrize(
    "head",
    [
        ipv4(p.tcp() + bytes(40))[14:58],
        # an IPv4 fragment with TCP's number where IPv6 has its own
        ipv4(p.tcp() + bytes(40), fragment=0x0600)[14:58],
        p.ipv6(p.udp(destination=10514), p.UDP)[:44],
        p.ipv6(p.tcp(), length=0)[:44],
        p.ipv6(TAGGED + p.tcp(), p.DESTINATION)[:44],
        p.ipv6(bytes(8), p.ICMPV6)[:44],
    ],
)
def test_what_its_first_octets_do_not_tell(head: bytes) -> None:
    assert not OF_FILES[101].is_told_by(head)


@pytest.mark.parametrize("link_type", [1, 113, 276])
def test_what_is_no_ip_packet_behind_a_link_header(link_type: int) -> None:
    # The first octet alone would pass for the beginning of an IPv6 header.
    body = b"\x60" + bytes(60)
    frame = {1: p.ethernet(body, p.ARP), 113: sll(body, p.ARP), 276: sll2(body, p.ARP)}[link_type]
    assert OF_FILES[link_type].parse(frame, len(frame)) is None


@given(st.binary(max_size=300))
def test_no_octets_make_it_fail(octets: bytes) -> None:
    parse_ethernet(octets)
    parse_ip(octets)
    parse_ip(b"\x60" + octets)
    parse_ip(b"\x45" + octets)
    for link in OF_FILES.values():
        link.parse(octets, 0)
    for protocol in (p.HOP_BY_HOP, p.ROUTING, p.FRAGMENT, p.DESTINATION, p.UDP):
        parse_ip(p.ipv6(octets, protocol))


@given(st.integers(0, 120))
def test_truncated_captures_keep_what_is_there(length: int) -> None:
    frame = p.ethernet(p.ipv6(TAGGED + p.tcp(), p.DESTINATION, label=196664))
    found = parse_ethernet(frame[:length])
    if length < 54:
        assert found is None
    else:
        assert found is not None
        assert (found.label, found.octets) == (196664, 75)
        assert found.header_tag == (Tag(2, 15) if length >= 62 else None)
        assert found.ports == (PORTS if length >= 66 else b"")
