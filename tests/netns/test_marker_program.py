"""The marker's program on single packets, in the kernel (BPF_PROG_TEST_RUN): octets in, octets out."""

from __future__ import annotations

import errno
import socket
import struct
import threading

import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from scitags_agent.bpf.layout import WAYS
from scitags_agent.bpf.loader import MarkerProgram
from scitags_core import label
from scitags_core.flow import FlowKey
from tests.netns import packets as p
from tests.netns.crowds import crowded, frame, without_a_place

PASS_ON = -1  # TC_ACT_UNSPEC, TCX_NEXT
LABEL = label.encode(3, 14, 21)
TCP_FLOW = FlowKey.of(p.SRC, 1094, p.DST, 43720)
UDP_FLOW = FlowKey.of(p.SRC, 1094, p.DST, 43720, "udp")


@pytest.fixture
def marking(program: MarkerProgram) -> MarkerProgram:
    program.set(TCP_FLOW, LABEL)
    program.set(UDP_FLOW, LABEL)
    return program


def labelled(packet: bytes, at: int) -> bytes:
    """The packet with our label in the IPv6 header at an offset, and nothing else changed."""
    word = struct.unpack_from("!I", packet, at)[0] & 0xFFF00000 | LABEL
    return packet[:at] + struct.pack("!I", word) + packet[at + 4 :]


MARKED = {
    "tcp": (p.ethernet(p.ipv6(p.tcp())), 14),
    "udp": (p.ethernet(p.ipv6(p.udp(), p.UDP)), 14),
    "a label of its own": (p.ethernet(p.ipv6(p.tcp(), label=0xABCDE)), 14),
    "VLAN": (p.ethernet(p.ipv6(p.tcp()), p.IPV6, (0x8100, 5)), 18),
    "QinQ": (p.ethernet(p.ipv6(p.tcp()), p.IPV6, (0x88A8, 5), (0x8100, 6)), 22),
    "Destination Options": (p.ethernet(p.ipv6(p.extension(p.TCP) + p.tcp(), p.DESTINATION)), 14),
    "long Hop-by-Hop": (p.ethernet(p.ipv6(p.extension(p.TCP, 3) + p.tcp(), p.HOP_BY_HOP)), 14),
    "three headers": (
        p.ethernet(
            p.ipv6(p.extension(p.ROUTING) + p.extension(p.DESTINATION, 2) + p.extension(p.UDP) + p.udp(), p.HOP_BY_HOP)
        ),
        14,
    ),
    "BIG TCP": (p.ethernet(p.ipv6(p.jumbo(p.TCP, 100_000) + p.tcp(), p.HOP_BY_HOP, length=0)), 14),
    "first fragment": (p.ethernet(p.ipv6(p.fragment(p.TCP, 0) + p.tcp(), p.FRAGMENT)), 14),
}

LEFT_ALONE = {
    "unknown source port": p.ethernet(p.ipv6(p.tcp(source=1095))),
    "unknown destination port": p.ethernet(p.ipv6(p.tcp(destination=43721))),
    "ICMPv6": p.ethernet(p.ipv6(p.tcp(), p.ICMPV6)),
    "no next header": p.ethernet(p.ipv6(b"", 59)),
    "IPv4": p.ethernet(b"\x45" + bytes(60), p.IPV4),
    "ARP": p.ethernet(bytes(60), p.ARP),
    "version 5 under IPv6's ethertype": p.ethernet(b"\x50" + p.ipv6(p.tcp())[1:]),
    "three VLAN tags": p.ethernet(p.ipv6(p.tcp()), p.IPV6, (0x8100, 5), (0x8100, 6), (0x8100, 7)),
}

COUNTED = {
    "later fragment": ("fragment", p.ethernet(p.ipv6(p.fragment(p.TCP, 100) + p.tcp(), p.FRAGMENT))),
    "cut in the ports": ("truncated", p.ethernet(p.ipv6(p.tcp()[:3]))),
    "cut in an option": ("truncated", p.ethernet(p.ipv6(p.extension(p.TCP)[:5], p.DESTINATION))),
    "option longer than the packet": ("truncated", p.ethernet(p.ipv6(p.extension(p.TCP, 9)[:8], p.DESTINATION))),
    "seven headers": (
        "headers",
        p.ethernet(p.ipv6(p.extension(p.DESTINATION) * 6 + p.extension(p.TCP) + p.tcp(), p.DESTINATION)),
    ),
}


@pytest.mark.parametrize("name", MARKED)
def test_known_flows_are_labelled_and_nothing_else_changes(marking: MarkerProgram, name: str) -> None:
    packet, at = MARKED[name]
    run = marking.test_run(packet)
    assert run.verdict == PASS_ON
    assert run.packet == labelled(packet, at)
    assert marking.outcomes()["marked"] == 1


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_everything_else_is_left_alone_and_costs_no_count(marking: MarkerProgram, name: str) -> None:
    run = marking.test_run(LEFT_ALONE[name])
    assert (run.verdict, run.packet) == (PASS_ON, LEFT_ALONE[name])
    assert not any(marking.outcomes().values())


@pytest.mark.parametrize("name", COUNTED)
def test_what_cannot_be_told_is_left_alone_and_counted_by_reason(marking: MarkerProgram, name: str) -> None:
    reason, packet = COUNTED[name]
    run = marking.test_run(packet)
    assert (run.verdict, run.packet) == (PASS_ON, packet)
    assert {name: count for name, count in marking.outcomes().items() if count} == {reason: 1}


def test_every_traffic_class_is_kept(marking: MarkerProgram) -> None:
    for traffic_class in range(256):
        packet = p.ethernet(p.ipv6(p.tcp(), traffic_class=traffic_class))
        assert marking.test_run(packet).packet == labelled(packet, 14)


@pytest.mark.parametrize("name", MARKED)
def test_truncated_anywhere_nothing_but_the_label_can_change(marking: MarkerProgram, name: str) -> None:
    packet, at = MARKED[name]
    # The kernel's test run itself refuses an IPv6 frame without a whole IPv6 header.
    for length in range(at + 40 if at == 14 else 15, len(packet)):
        run = marking.test_run(packet[:length])
        assert run.verdict == PASS_ON
        assert run.packet in (packet[:length], labelled(packet, at)[:length])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.one_of(
        st.binary(min_size=15, max_size=200),
        st.binary(min_size=1, max_size=150).map(lambda rest: p.ethernet(b"\x60" + rest)),
        st.builds(
            lambda headers, protocol: p.ethernet(p.ipv6(headers + p.tcp(), protocol)),
            st.binary(max_size=80),
            st.sampled_from([p.HOP_BY_HOP, p.ROUTING, p.FRAGMENT, p.DESTINATION, p.TCP]),
        ),
    )
)
@example(p.ethernet(p.ipv6(p.tcp())))
def test_whatever_the_packet_it_passes_on_and_only_the_label_can_change(marking: MarkerProgram, packet: bytes) -> None:
    try:
        run = marking.test_run(packet)
    except OSError:  # the test run's own checks, before the program
        reject()
    assert run.verdict == PASS_ON
    assert len(run.packet) == len(packet)
    different = [at for at, (one, other) in enumerate(zip(packet, run.packet, strict=True)) if one != other]
    # The label is the last 20 bits of the first word of an IPv6 header, wherever that begins here.
    assert all(at in (15, 16, 17, 19, 20, 21, 23, 24, 25) for at in different)
    if different:
        at = max(start for start in (14, 18, 22) if start <= different[0])
        assert run.packet == labelled(packet, at)


def test_a_flow_that_is_unset_is_no_longer_marked(marking: MarkerProgram) -> None:
    packet = MARKED["tcp"][0]
    marking.unset(TCP_FLOW)
    assert marking.test_run(packet).packet == packet
    assert marking.test_run(MARKED["udp"][0]).packet == labelled(*MARKED["udp"])
    marking.unset(TCP_FLOW)
    marking.unset(UDP_FLOW)
    assert len(marking) == 0
    assert marking.test_run(MARKED["udp"][0]).packet == MARKED["udp"][0]


def test_every_port_can_be_known(program: MarkerProgram) -> None:
    for port in (1, 63, 64, 65, 1023, 32767, 32768, 65535):
        flow = FlowKey.of(p.SRC, port, p.DST, 43720)
        packet = p.ethernet(p.ipv6(p.tcp(source=port)))
        program.set(flow, LABEL)
        assert program.test_run(packet).packet == labelled(packet, 14)
        program.unset(flow)
        assert program.test_run(packet).packet == packet


def test_flows_without_a_place_in_the_table_are_marked_all_the_same(program: MarkerProgram) -> None:
    residents, homeless = without_a_place()
    crowd = [*residents, homeless]
    frames = {flow: frame(flow) for flow in crowd}
    for number, flow in enumerate(crowd):
        program.set(flow, label.encode(2, number))
    for number, flow in enumerate(crowd):
        word = struct.unpack_from("!I", program.test_run(frames[flow]).packet, 14)[0]
        assert word & 0xFFFFF == label.encode(2, number)
    assert program.in_map == 1
    # A change of label, and each taken away in turn, whichever place it has.
    for flow in crowd:
        program.set(flow, LABEL)
        assert program.test_run(frames[flow]).packet == labelled(frames[flow], 14)
    for gone, flow in enumerate(crowd, 1):
        program.unset(flow)
        for number, other in enumerate(crowd):
            expected = frames[other] if number < gone else labelled(frames[other], 14)
            assert program.test_run(frames[other]).packet == expected
    assert (len(program), program.in_map) == (0, 0)
    program.set(crowd[0], LABEL)
    assert program.test_run(frames[crowd[0]]).packet == labelled(frames[crowd[0]], 14)


@pytest.mark.parametrize("neighbours", [1, WAYS - 1, WAYS + 1])
def test_a_flow_is_found_by_every_packet_while_its_neighbours_come_and_go(
    program: MarkerProgram, neighbours: int
) -> None:
    """The table changes while packets pass: who is in it never misses a mark, who is not never gets one."""
    steady, stranger, *others = crowded(neighbours + 2)
    program.set(steady, LABEL)
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            for flow in others:
                program.set(flow, LABEL)
            program.set(steady, label.encode(2, 15))
            for flow in others:
                program.unset(flow)
            program.set(steady, LABEL)

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for _ in range(5):
            for flow in (steady, stranger):
                program.test_run(frame(flow), repeat=200_000)
    finally:
        done.set()
        churning.join()
    assert program.outcomes()["marked"] == 5 * 200_000


def test_extension_headers_may_be_long(marking: MarkerProgram) -> None:
    long = p.extension(p.DESTINATION, 31) + p.extension(p.TCP, 31)
    packet = p.ethernet(p.ipv6(long + p.tcp(), p.DESTINATION))
    assert marking.test_run(packet).packet == labelled(packet, 14)
    # Ports that far behind and not there: too long, not cut short.
    assert marking.test_run(packet[:400]).packet == packet[:400]
    assert {name: count for name, count in marking.outcomes().items() if count} == {"marked": 1, "headers": 1}


def test_the_program_and_its_loader_agree_on_every_line(program: MarkerProgram) -> None:
    """Keys of all kinds are found again, one at a time, so none by way of the overflow map."""
    for number in range(2000):
        flow = FlowKey.of(f"2001:db8::{number:x}", 1 + number * 31 % 65535, f"fd00:{number * 7:x}::{number:x}", 1094)
        addresses = socket.inet_pton(socket.AF_INET6, flow.src) + socket.inet_pton(socket.AF_INET6, flow.dst)
        packet = p.ethernet(p.ipv6(p.tcp(flow.src_port, flow.dst_port)))
        packet = packet[:22] + addresses + packet[54:]
        program.set(flow, LABEL)
        assert program.test_run(packet).packet == labelled(packet, 14)
        program.unset(flow)


def test_a_full_table_says_so_and_goes_on(program: MarkerProgram) -> None:
    flows = [FlowKey.of(p.SRC, 1094, p.DST, port) for port in range(1, 2000)]

    def fill() -> None:
        for flow in flows:
            program.set(flow, LABEL)

    with pytest.raises(OSError, match="there is room for 64 flows") as caught:
        fill()
    assert caught.value.errno == errno.E2BIG
    assert len(program) == 64
    packet = p.ethernet(p.ipv6(p.tcp(destination=1)))
    assert program.test_run(packet).packet == labelled(packet, 14)
