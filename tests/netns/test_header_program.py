"""The program that puts tags into extension headers, on single packets: BPF_PROG_TEST_RUN."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from bench.random_packets import HEADER_KINDS, damaged, for_headers, only_the_header_is_new
from scitags_agent.bpf.header_program import Header, HeaderOutcome, HeaderProgram
from scitags_core import exthdr
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag
from tests.netns import packets as p
from tests.netns.programs import TC_ACT_UNSPEC

TAG = Tag(1023, 63)
HEADERS: list[Header] = ["destination-options", "hop-by-hop", "both"]
RANDOM_PACKETS = 30_000


@pytest.fixture(params=HEADERS)
def marking(bpf: None, request: pytest.FixtureRequest) -> Iterator[HeaderProgram]:
    one = HeaderProgram(request.param, max_flows=8)
    for kind in ("tcp", "udp"):
        one.put(FlowKey.of(p.SRC, 1094, p.DST, 43720, kind), TAG)
    yield one
    one.close()


def outcomes(program: HeaderProgram) -> dict[str, int]:
    return {name: count for name, count in program.outcomes().items() if count}


def headed(program: HeaderProgram, payload: bytes, protocol: int) -> tuple[bytes, int]:
    """The payload behind the headers of a program, and the number of the first."""
    for kind in reversed(HEADER_KINDS[program.header]):
        payload, protocol = exthdr.encode(*TAG, protocol) + payload, kind
    return payload, protocol


@pytest.mark.parametrize("protocol", [p.TCP, p.UDP])
def test_a_packet_gets_its_header_and_all_else_stays(marking: HeaderProgram, protocol: int) -> None:
    payload = p.tcp() if protocol == p.TCP else p.udp()
    found = marking.test_run(p.ethernet(p.ipv6(payload, protocol, traffic_class=0xB9, label=0x12345)))
    expected = p.ipv6(*headed(marking, payload, protocol), traffic_class=0xB9, label=0x12345)
    assert found.verdict == TC_ACT_UNSPEC
    assert found.packet == p.ethernet(expected)
    assert outcomes(marking) == {"marked": 1}


def test_what_bears_our_header_already_is_left_alone_and_not_counted(marking: HeaderProgram) -> None:
    """A VLAN on a bond: the program runs on each; or the header is on the socket."""
    once = marking.test_run(p.ethernet(p.ipv6(p.tcp()))).packet
    assert marking.test_run(once).packet == once
    assert outcomes(marking) == {"marked": 1}


LEFT_ALONE = {
    "other options": ("others", p.ethernet(p.ipv6(p.extension(p.TCP) + p.tcp(), p.DESTINATION))),
    "routing": ("others", p.ethernet(p.ipv6(p.extension(p.TCP, 2) + p.tcp(), p.ROUTING))),
    "BIG TCP": ("big", p.ethernet(p.ipv6(p.jumbo(p.TCP, 99) + p.tcp(), p.HOP_BY_HOP))),
    "first fragment": ("fragment", p.ethernet(p.ipv6(p.fragment(p.TCP, 0) + p.tcp(), p.FRAGMENT))),
    "later fragment": ("", p.ethernet(p.ipv6(p.fragment(p.TCP, 5) + p.tcp(), p.FRAGMENT))),
    "VLAN tag in the data": ("vlan", p.ethernet(p.ipv6(p.tcp()), p.IPV6, (0x8100, 7))),
    "QinQ in the data": ("vlan", p.ethernet(p.ipv6(p.tcp()), p.IPV6, (0x88A8, 7), (0x8100, 8))),
    "length too small": ("malformed", p.ethernet(p.ipv6(p.tcp(), length=8))),
    "length too large": ("malformed", p.ethernet(p.ipv6(p.tcp(), length=800))),
    "another flow": ("", p.ethernet(p.ipv6(p.tcp(1095)))),
    "another flow from the same port": ("", p.ethernet(p.ipv6(p.tcp(1094, 1)))),
    "ICMPv6": ("", p.ethernet(p.ipv6(bytes(8), p.ICMPV6))),
    "IPv4": ("", p.ethernet(b"\x45" + bytes(59), p.IPV4)),
    "ARP": ("", p.ethernet(bytes(28), p.ARP)),
}


@pytest.mark.parametrize("what", LEFT_ALONE)
def test_what_is_left_alone_is_counted_by_reason(marking: HeaderProgram, what: str) -> None:
    reason, packet = LEFT_ALONE[what]
    found = marking.test_run(packet)
    assert (found.verdict, found.packet) == (TC_ACT_UNSPEC, packet)
    assert outcomes(marking) == ({reason: 1} if reason else {})


def test_a_packet_cut_short_anywhere_is_left_alone(marking: HeaderProgram) -> None:
    packet = p.ethernet(p.ipv6(p.tcp()))
    for length in range(14 + 40, len(packet)):
        assert marking.test_run(packet[:length]).packet == packet[:length]
    assert "marked" not in outcomes(marking)


@pytest.mark.parametrize(("path_mtu", "fits"), [(0, 1280), (1400, 1400), (2000, 2000)])
def test_how_long_a_datagram_may_become(marking: HeaderProgram, path_mtu: int, fits: int) -> None:
    """Of what is not of a TCP socket the agent must know the path; 1280 octets pass wherever IPv6 does."""
    flow = FlowKey.of(p.SRC, 1094, p.DST, 43720, "udp")
    marking.put(flow, TAG, path_mtu=path_mtu)
    room = len(headed(marking, b"", p.UDP)[0])
    for octets, marked in ((fits - room, True), (fits - room + 1, False)):
        payload = struct.pack("!HHHH", 1094, 43720, octets - 40, 0) + bytes(octets - 48)
        packet = p.ethernet(p.ipv6(payload, p.UDP))
        assert (marking.test_run(packet).packet != packet) == marked
    assert outcomes(marking) == {"marked": 1, "no_room": 1}


def test_flows_come_and_go(marking: HeaderProgram) -> None:
    packet = p.ethernet(p.ipv6(p.tcp()))
    tcp, udp = (FlowKey.of(p.SRC, 1094, p.DST, 43720, kind) for kind in ("tcp", "udp"))
    marking.remove(tcp)
    marking.remove(tcp)
    assert marking.test_run(packet).packet == packet
    assert marking.test_run(p.ethernet(p.ipv6(p.udp(), p.UDP))).packet != p.ethernet(p.ipv6(p.udp(), p.UDP))
    marking.put(tcp, Tag(2, 15))
    assert exthdr.decode(marking.test_run(packet).packet[54:62]).tag == Tag(2, 15)
    marking.remove(udp)
    assert len(marking) == 1


def test_there_is_an_outcome_for_each_counter(marking: HeaderProgram) -> None:
    assert list(marking.outcomes()) == [one.name.lower() for one in HeaderOutcome]


def test_random_packets(marking: HeaderProgram) -> None:
    """`python -m bench random_packets` runs ten million."""
    chance = random.Random(20261128)
    choices = for_headers(chance)
    marked = 0
    for _ in range(RANDOM_PACKETS // len(HEADERS)):
        packet = damaged(choices[int(chance.random() * len(choices))], chance)
        if len(packet) < 54:  # the kernel makes no such packet for a test
            continue
        found = marking.test_run(packet)
        assert found.verdict == TC_ACT_UNSPEC
        if found.packet != packet:
            assert only_the_header_is_new(packet, found.packet, marking.header, TAG), packet.hex()
            marked += 1
    assert marked > 500
