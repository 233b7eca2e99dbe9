"""Packets in packets: what was sent is found in whatever carries it, and what carries nothing is left as it is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_collector.observation import Observation
from scitags_collector.packet import Packet, parse_ethernet, parse_ip
from scitags_core import exthdr, firefly, label, registry_history
from scitags_core.tag import Tag
from tests.collector.test_observation import announcement
from tests.collector.test_packet import ipv4
from tests.netns import packets as p

ATLAS = Tag(2, 15)
LABEL = label.encode(*ATLAS, 9)
INNER6 = p.ipv6(p.tcp(source=7), label=LABEL)
FRAME6 = p.ethernet(INNER6)
HEADER6 = p.ipv6(exthdr.encode(*ATLAS, p.TCP) + p.tcp(source=7), p.DESTINATION)
IPIP, IPV6, GRE = 4, 41, 47
ETHERNET, ERSPAN, MPLS = 0x6558, 0x88BE, 0x8847


def over_six(payload: bytes, protocol: int) -> bytes:
    return p.ethernet(p.ipv6(payload, protocol, label=0x12345))


def gre(payload: bytes, kind: int, flags: int = 0) -> bytes:
    options = 4 * sum(bool(flags & one) for one in (0x8000, 0x2000, 0x1000))
    return struct.pack("!HH", flags, kind) + bytes(options) + payload


def udp(payload: bytes, port: int) -> bytes:
    return struct.pack("!HHHH", 50_000, port, 8 + len(payload), 0) + payload


def vxlan(payload: bytes) -> bytes:
    return b"\x08\0\0\0" + b"\0\0\5\0" + payload


def geneve(payload: bytes, kind: int, options: int = 0) -> bytes:
    return struct.pack("!BBHI", options, 0, kind, 5 << 8) + bytes(4 * options) + payload


def mpls(payload: bytes, *values: int) -> bytes:
    """A stack of labels, the last of which says that it is the last."""
    entries = [struct.pack("!I", value << 12 | (number == len(values) - 1) << 8) for number, value in enumerate(values)]
    return p.ethernet(b"".join(entries) + payload, MPLS)


CARRIED = {
    "6in4": ipv4(INNER6, IPV6),
    "6in6": over_six(INNER6, IPV6),
    "GRE over IPv4": ipv4(gre(INNER6, p.IPV6), GRE),
    "GRE over IPv6": over_six(gre(INNER6, p.IPV6), GRE),
    "GRE with key, checksum and number": over_six(gre(INNER6, p.IPV6, 0xB000), GRE),
    "frames in GRE": over_six(gre(FRAME6, ETHERNET, 0x2000), GRE),
    "frames in GRE with a VLAN": over_six(gre(p.ethernet(INNER6, p.IPV6, (0x8100, 5)), ETHERNET), GRE),
    "ERSPAN": ipv4(gre(bytes(8) + FRAME6, ERSPAN, 0x1000), GRE),
    "the first ERSPAN": ipv4(gre(FRAME6, ERSPAN), GRE),
    "VXLAN over IPv4": ipv4(udp(vxlan(FRAME6), 4789), p.UDP),
    "VXLAN over IPv6": over_six(udp(vxlan(FRAME6), 4789), p.UDP),
    "VXLAN at the older port": over_six(udp(vxlan(FRAME6), 8472), p.UDP),
    "Geneve": over_six(udp(geneve(FRAME6, ETHERNET), 6081), p.UDP),
    "Geneve with options, an IP packet": over_six(udp(geneve(INNER6, p.IPV6, 3), 6081), p.UDP),
    "MPLS": mpls(INNER6, 16),
    "a stack of MPLS": mpls(INNER6, 16, 17, 18),
    "MPLS behind a VLAN": p.ethernet(struct.pack("!I", 16 << 12 | 1 << 8) + INNER6, MPLS, (0x8100, 5)),
    "a pseudowire": mpls(bytes(4) + FRAME6, 16, 17),
    "GRE in VXLAN": over_six(udp(vxlan(over_six(gre(INNER6, p.IPV6), GRE)), 4789), p.UDP),
}


@pytest.mark.parametrize("frame", CARRIED.values(), ids=CARRIED)
def test_what_is_carried_counts(frame: bytes) -> None:
    found = parse_ethernet(frame)
    assert found is not None
    assert (found.label, found.ports[:2], found.octets) == (LABEL, b"\0\x07", len(INNER6))
    assert found.depth >= 1


def test_a_header_and_a_firefly_in_a_tunnel_are_found() -> None:
    found = parse_ethernet(over_six(gre(HEADER6, p.IPV6), GRE))
    assert found is not None
    assert found.header_tag == ATLAS
    datagram = announcement()
    found = parse_ethernet(over_six(udp(vxlan(p.ethernet(p.ipv6(udp(datagram, firefly.PORT), p.UDP))), 4789), p.UDP))
    assert found is not None
    assert found.payload == datagram


OUTSIDE: dict[str, tuple[bytes, int]] = {
    "GRE of another version": (over_six(gre(INNER6, p.IPV6, 0x0001), GRE), GRE),
    "GRE with routing": (over_six(gre(INNER6, p.IPV6, 0x4000), GRE), GRE),
    "GRE of something else": (over_six(gre(INNER6, 0x1234), GRE), GRE),
    "to VXLAN's port without its flag": (over_six(udp(bytes(8) + FRAME6, 4789), p.UDP), p.UDP),
    "to Geneve's port of another version": (over_six(udp(b"\x40" + geneve(FRAME6, ETHERNET)[1:], 6081), p.UDP), p.UDP),
    "VXLAN with what is no IP": (over_six(udp(vxlan(p.ethernet(bytes(40), p.ARP)), 4789), p.UDP), p.UDP),
    "a frame to another port": (over_six(udp(vxlan(FRAME6), 4790), p.UDP), p.UDP),
    "a packet that is longer than its tunnel": (over_six(p.ipv6(p.tcp(), length=2000), IPV6), IPV6),
}


@pytest.mark.parametrize(("frame", "protocol"), OUTSIDE.values(), ids=OUTSIDE)
def test_what_is_no_tunnel_counts_itself(frame: bytes, protocol: int) -> None:
    found = parse_ethernet(frame, len(frame))
    assert found is not None
    assert (found.label, found.protocol, found.octets) == (0x12345, protocol, len(frame) - 14)


def test_the_first_part_of_a_tunnels_packet_is_not_taken_for_a_whole_one() -> None:
    first = p.fragment(GRE, 0) + gre(p.ipv6(p.tcp() + bytes(1400)), p.IPV6)[:1200]
    found = parse_ethernet(p.ethernet(p.ipv6(first, p.FRAGMENT)), 14 + 40 + len(first))
    assert found is not None
    assert (found.protocol, found.depth) == (GRE, 0)


def test_there_is_an_end_to_tunnels_in_tunnels() -> None:
    packet = INNER6
    for _ in range(50):
        packet = p.ipv6(packet, IPV6)
    found = parse_ip(packet, len(packet))
    assert found is not None
    assert (found.protocol, found.depth) == (IPV6, 4)


@given(
    st.sampled_from(list(CARRIED.values())), st.integers(0, 200), st.lists(st.tuples(st.integers(0, 199), st.binary()))
)
def test_damage_raises_nothing(frame: bytes, length: int, changes: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(frame)
    for at, octets in changes:
        damaged[at : at + len(octets)] = octets
    for one in (bytes(damaged), bytes(damaged[:length])):
        assert parse_ethernet(one) is None or isinstance(parse_ethernet(one), Packet)


@pytest.mark.parametrize("one", [CARRIED["VXLAN over IPv6"], CARRIED["6in6"]], ids=["VXLAN", "6in6"])
def test_the_same_beginning_may_carry_another(one: bytes) -> None:
    """An observer does not take all packets between two ends of a tunnel for one flow."""
    from scitags_collector.link import ETHERNET as LINK

    other = over_six(udp(vxlan(p.ethernet(p.ipv6(p.tcp(source=8)))), 4789), p.UDP)
    observation = Observation(registry_history.built_in().registry())
    observation.add_frames((1, LINK, frame, 0, len(frame), len(frame)) for frame in (one, other, one, other))
    assert [(row.tag, row.packets) for row in observation.rows()] == [(ATLAS, 2), (None, 2)]
    assert observation.in_tunnels == 4
