"""Static labels on single packets, in the kernel (BPF_PROG_TEST_RUN): octets in, octets out."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import IPv6Network

import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from scitags_agent.bpf.layout import MAX_STATIC, pack_key, static_entropy
from scitags_agent.bpf.loader import MarkerProgram
from scitags_core import label
from scitags_core.flow import FlowKey
from tests.netns import packets as p
from tests.netns.test_marker_program import COUNTED, LABEL, LEFT_ALONE, MARKED, PASS_ON, TCP_FLOW, labelled

INTERFACE = 1  # that of a test run
EVERYWHERE = IPv6Network("::/0")
BASE = label.encode(2, 15)
OTHER = label.encode(3, 14)
NOT_IPV6 = {"IPv4", "ARP", "version 5 under IPv6's ethertype", "three VLAN tags"}


@pytest.fixture
def program(bpf: None) -> Iterator[MarkerProgram]:
    loaded = MarkerProgram(max_flows=64, static=True)
    loaded.set_static({(INTERFACE, EVERYWHERE): BASE})
    yield loaded
    loaded.close()


def label_of(packet: bytes, at: int = 14) -> int:
    return int.from_bytes(packet[at : at + 4], "big") & 0xFFFFF


def outcomes(program: MarkerProgram) -> dict[str, int]:
    return {name: count for name, count in program.outcomes().items() if count}


def with_label(packet: bytes, at: int, value: int) -> bytes:
    word = int.from_bytes(packet[at : at + 4], "big") & 0xFFF00000 | value
    return packet[:at] + word.to_bytes(4, "big") + packet[at + 4 :]


@pytest.mark.parametrize("name", MARKED)
def test_what_belongs_to_no_flow_bears_the_label_of_where_it_goes(program: MarkerProgram, name: str) -> None:
    packet, at = MARKED[name]
    run = program.test_run(packet)
    assert run.verdict == PASS_ON
    found = label_of(run.packet, at)
    assert run.packet == with_label(packet, at, found)
    assert found & ~label.ENTROPY_MASK == BASE
    if name != "first fragment":
        flow = FlowKey.of(p.SRC, 1094, p.DST, 43720)
        assert label.decode(found).entropy == static_entropy(pack_key(flow))
    assert outcomes(program) == {"static": 1}


@pytest.mark.parametrize("name", MARKED)
def test_a_flow_s_own_label_wins(program: MarkerProgram, name: str) -> None:
    packet, at = MARKED[name]
    for protocol in ("tcp", "udp"):
        program.set(FlowKey.of(p.SRC, 1094, p.DST, 43720, protocol), LABEL)
    assert program.test_run(packet).packet == labelled(packet, at)
    assert outcomes(program) == {"marked": 1}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_whatever_is_ipv6_is_marked_and_nothing_else(program: MarkerProgram, name: str) -> None:
    packet = LEFT_ALONE[name]
    run = program.test_run(packet)
    assert run.verdict == PASS_ON
    if name in NOT_IPV6:
        assert run.packet == packet
        assert not outcomes(program)
    else:
        assert run.packet == with_label(packet, 14, label_of(run.packet))
        assert label.decode(label_of(run.packet)).tag == (2, 15)
        assert outcomes(program) == {"static": 1}


@pytest.mark.parametrize("name", COUNTED)
def test_what_has_no_ports_is_marked_and_what_is_cut_off_is_not(program: MarkerProgram, name: str) -> None:
    reason, packet = COUNTED[name]
    run = program.test_run(packet)
    if reason == "truncated":
        assert run.packet == packet
        assert outcomes(program) == {"truncated": 1}
    else:
        assert label.decode(label_of(run.packet)).tag == (2, 15)
        assert run.packet == with_label(packet, 14, label_of(run.packet))
        assert outcomes(program) == {"static": 1}


def test_where_nothing_is_said_of_a_network_nothing_changes(program: MarkerProgram) -> None:
    program.set_static({(INTERFACE, IPv6Network("2001:db8:ffff::/48")): BASE, (2, EVERYWHERE): BASE})
    for packet, _ in MARKED.values():
        assert program.test_run(packet).packet == packet
    for reason, packet in COUNTED.values():
        before = outcomes(program).get(reason, 0)
        assert program.test_run(packet).packet == packet
        assert outcomes(program)[reason] == before + 1
    assert "static" not in outcomes(program)


def test_the_longest_network_of_the_interface_counts(program: MarkerProgram) -> None:
    packet = MARKED["tcp"][0]
    everywhere, network, host = EVERYWHERE, IPv6Network("2001:db8::/64"), IPv6Network(f"{p.DST}/128")
    for labels, expected in (
        ({everywhere: BASE, network: OTHER}, OTHER),
        ({everywhere: OTHER, network: OTHER, host: BASE}, BASE),
        ({network: BASE, IPv6Network("2001:db8:0:1::/64"): OTHER}, BASE),
        ({everywhere: OTHER}, OTHER),
        ({}, 0),
    ):
        program.set_static({(INTERFACE, place): value for place, value in labels.items()})
        assert label_of(program.test_run(packet).packet) & ~label.ENTROPY_MASK == expected
        # Those of another interface are not ours.
        more = {(INTERFACE + 1, host): label.encode(1, 1)}
        program.set_static({**{(INTERFACE, place): value for place, value in labels.items()}, **more})
        assert label_of(program.test_run(packet).packet) & ~label.ENTROPY_MASK == expected


def test_a_flow_has_one_entropy_both_ways_and_flows_have_all_of_them(program: MarkerProgram) -> None:
    found = set()
    for port in range(1024, 1536):
        flow = FlowKey.of(p.SRC, port, p.DST, 443)
        forth, back = pack_key(flow), pack_key(flow.reversed())
        entropy = label.decode(label_of(program.test_run(p.ethernet(p.ipv6(p.tcp(port, 443)))).packet)).entropy
        assert entropy == static_entropy(forth) == static_entropy(back)
        found.add(entropy)
    assert found == set(range(32))


def test_all_fragments_of_a_packet_bear_one_label(program: MarkerProgram) -> None:
    for known in (False, True):
        if known:  # a flow has its source port, and is another
            program.set(FlowKey.of(p.SRC, 1094, p.DST, 1), LABEL)
        labels = {
            label_of(program.test_run(p.ethernet(p.ipv6(p.fragment(p.UDP, offset) + p.udp(), p.FRAGMENT))).packet)
            for offset in (0, 2, 100)
        }
        assert len(labels) == 1


@pytest.mark.parametrize("traffic_class", [0, 1, 2, 3, 0x2B, 0xB8, 0xFF])
def test_the_traffic_class_is_kept(program: MarkerProgram, traffic_class: int) -> None:
    packet = p.ethernet(p.ipv6(p.tcp(), traffic_class=traffic_class))
    changed = program.test_run(packet).packet
    assert changed == with_label(packet, 14, label_of(changed))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.one_of(
        st.binary(min_size=15, max_size=200),
        st.binary(min_size=1, max_size=150).map(lambda rest: p.ethernet(b"\x60" + rest)),
        st.builds(
            lambda headers, protocol, cut: p.ethernet(p.ipv6(headers + p.tcp(), protocol))[: 14 + 40 + cut],
            st.binary(max_size=80),
            st.sampled_from([p.HOP_BY_HOP, p.ROUTING, p.FRAGMENT, p.DESTINATION, p.TCP, p.ICMPV6]),
            st.integers(0, 100),
        ),
    )
)
@example(p.ethernet(p.ipv6(p.tcp())))
def test_whatever_the_packet_it_passes_on_and_only_the_label_can_change(program: MarkerProgram, packet: bytes) -> None:
    try:
        run = program.test_run(packet)
    except OSError:  # the test run's own checks, before the program
        reject()
    assert run.verdict == PASS_ON
    assert len(run.packet) == len(packet)
    if run.packet != packet:
        at = next(at for at in (14, 18, 22) if packet[at] >> 4 == 6 and packet[at - 2 : at] == b"\x86\xdd")
        assert run.packet == with_label(packet, at, label_of(run.packet, at))
        assert label.decode(label_of(run.packet, at)).tag == (2, 15)


def test_more_than_there_is_room_for_is_refused(program: MarkerProgram) -> None:
    labels = {(INTERFACE, IPv6Network((number << 64, 64))): BASE for number in range(MAX_STATIC + 1)}
    with pytest.raises(OSError, match="bpf_map_update_elem") as caught:
        program.set_static(labels)
    assert caught.value.errno == errno.ENOSPC
    program.set_static({(INTERFACE, EVERYWHERE): BASE})
    assert label.decode(label_of(program.test_run(MARKED["tcp"][0]).packet)).tag == (2, 15)


def test_a_flow_that_is_unset_bears_the_static_label_again(program: MarkerProgram) -> None:
    packet, at = MARKED["tcp"]
    before = program.test_run(packet).packet
    program.set(TCP_FLOW, LABEL)
    assert program.test_run(packet).packet == labelled(packet, at)
    program.unset(TCP_FLOW)
    assert program.test_run(packet).packet == before
