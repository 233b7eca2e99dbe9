"""Capturing from real interfaces: headers that the kernel wrote, links that come and go, and what is lost."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from scitags_collector.capture import CaptureFile, CaptureUnavailable, LiveCapture
from scitags_collector.flows import Flow
from scitags_collector.observation import Observation
from scitags_collector.packet import Packet
from scitags_collector.ring import BLOCK_OCTETS
from scitags_core import exthdr, firefly, label, registry_history
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag
from tests.collector.test_observation import NOON
from tests.netns import packets as p
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace, add_address, allow_big_tcp, delete_link, link, set_up

ATLAS, CMS = Tag(2, 15), Tag(3, 14)
REGISTRY = registry_history.built_in().registry()
# Linux, include/uapi/linux/in6.h
IPV6_FLOWLABEL_MGR, IPV6_FLOWINFO_SEND, IPV6_HOPOPTS, IPV6_DSTOPTS, IPV6_TCLASS = 32, 33, 54, 59, 67
FL_GET, FL_CREATE, FL_EXCLUSIVE = 0, 1, 1
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def labelled(sock: socket.socket, destination: str, value: int) -> None:
    """Lease a label for what an application sends, which then gives it with the address: no marker is about."""
    request = struct.pack(
        "!16sIBBHHH4x", socket.inet_pton(socket.AF_INET6, destination), value, FL_GET, FL_EXCLUSIVE, 0, 0, 0
    )
    # The flags and times are in the byte order of this machine, the label is not.
    request = request[:22] + struct.pack("HHH", FL_CREATE, 60, 60) + request[28:]
    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWLABEL_MGR, request)
    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWINFO_SEND, 1)


def udp(host: Namespace, port: int = 0, address: str = ALICE) -> socket.socket:
    with host.entered():
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    return made


def capture(host: Namespace, *interfaces: str, **options: object) -> LiveCapture:
    with host.entered():
        return LiveCapture(*interfaces, **options)  # type: ignore[arg-type]


def observed(live: LiveCapture) -> Observation:
    """Everything until now."""
    observation = Observation(REGISTRY)
    observation.add_frames(live.frames(lambda: False))
    return observation


def packets(live: LiveCapture) -> list[Packet]:
    return [one for _, one in live.packets(lambda: False) if one.ports]


@pytest.fixture
def live(pair: Pair) -> Iterator[LiveCapture]:
    with capture(pair.bob, "bob0") as opened:
        yield opened


def flow_from(observation: Observation, port: int) -> Flow:
    [found] = [one for one in observation.flows() if one.key is not None and one.key.src_port == port]
    return found


def test_labels_that_applications_set(pair: Pair, live: LiveCapture) -> None:
    values = {4001: label.encode(*ATLAS, 7), 4002: label.encode(*CMS, 31), 4003: label.encode(500, 7), 4004: 0}
    for port, value in values.items():
        with udp(pair.alice, port) as sender:
            if value:
                labelled(sender, BOB, value)
            sender.setsockopt(socket.IPPROTO_IPV6, IPV6_TCLASS, 0xB8)
            for _ in range(5):
                sender.sendto(b"x" * 100, (BOB, 1094, value))
    observation = observed(live)
    for port, value in values.items():
        flow = flow_from(observation, port)
        assert {one: borne.packets for one, borne in flow.labels.items()} == {value: 5}
        assert flow.traffic_classes == {0xB8: 5}
    rows = {row.tag: (row.packets, row.octets, row.flows) for row in observation.rows()}
    assert rows[ATLAS] == rows[CMS] == (5, 5 * 148, 1)
    assert live.dropped() == 0


def test_a_label_of_a_tcp_connection(pair: Pair, live: LiveCapture) -> None:
    value = label.encode(*ATLAS, 12)
    with pair.bob.entered():
        server = socket.create_server((BOB, 1094), family=socket.AF_INET6)
    with pair.alice.entered():
        client = socket.socket(socket.AF_INET6)
    with server, client:
        labelled(client, BOB, value)
        client.connect((BOB, 1094, value))
        accepted, _ = server.accept()
        with accepted:
            send_all(client, accepted, 1_000_000)
        port = client.getsockname()[1]
    observation = observed(live)
    flow = flow_from(observation, port)
    assert set(flow.labels) == {value}
    assert flow.total.octets > 1_000_000
    [row] = [row for row in observation.rows() if row.tag == ATLAS]
    assert row.octets == flow.total.octets
    assert live.dropped() == 0


@pytest.mark.parametrize("option", [IPV6_DSTOPTS, IPV6_HOPOPTS])
def test_extension_headers_that_the_kernel_wrote(pair: Pair, live: LiveCapture, option: int) -> None:
    with udp(pair.alice, 4001) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, option, exthdr.encode(*CMS, 0))
        sender.sendto(b"x" * 100, (BOB, 1094))
    flow = flow_from(observed(live), 4001)
    assert {tag: borne.octets for tag, borne in flow.header_tags.items()} == {CMS: 156}


def test_fragments_count_for_their_flow(pair: Pair, live: LiveCapture) -> None:
    add_address(pair.alice, "alice0", "192.0.2.1", 24)
    add_address(pair.bob, "bob0", "192.0.2.2", 24)
    for source, destination in ((ALICE, BOB), ("192.0.2.1", "192.0.2.2")):
        with udp(pair.alice, 4001, source) as sender:
            sender.sendto(b"x" * 4000, (destination, 1094))
    flows = [one for one in observed(live).flows() if one.protocol == p.UDP]
    assert sorted((one.version, one.key is None, one.total.packets) for one in flows) == [(4, False, 3), (6, False, 3)]
    # 40 of IPv6 and 8 of the fragment header each; 20 of IPv4; 8 of UDP once
    assert sorted(one.total.octets for one in flows) == [4000 + 8 + 3 * 20, 4000 + 8 + 3 * 48]


def test_fireflies_are_taken_whole_over_both_families(pair: Pair, live: LiveCapture) -> None:
    add_address(pair.alice, "alice0", "192.0.2.1", 24)
    add_address(pair.bob, "bob0", "192.0.2.2", 24)
    event = FlowEvent(
        state=FlowState.START, key=FlowKey.of(ALICE, 1, BOB, 2), tag=ATLAS, start_time=NOON, application="x" * 400
    )
    datagram = firefly.encode(event, now=NOON, host="alice", app="test")
    with udp(pair.alice) as six, udp(pair.alice, 0, "192.0.2.1") as four:
        six.sendto(datagram, (BOB, firefly.PORT))
        four.sendto(datagram, ("192.0.2.2", firefly.PORT))
    observation = observed(live)
    assert len(datagram) > 600
    assert [one.key for one in observation.announcements.events] == [event.key] * 2
    assert observation.announcements.refusals == 0


def test_of_other_packets_only_the_head_is_taken(pair: Pair, live: LiveCapture) -> None:
    with udp(pair.alice, 4001) as sender:
        sender.sendto(b"x" * 1400, (BOB, 1094))
    frames = [(captured, wire) for *_, captured, wire in live.frames(lambda: False)]
    assert (128, 14 + 40 + 8 + 1400) in frames


def ipv4(payload: bytes, *, options: bytes = b"", offset: int = 0) -> bytes:
    words = 5 + len(options) // 4
    start = struct.pack("!BBHHHBBH", 0x40 | words, 0, 4 * words + len(payload), 1, offset, 64, p.UDP, 0)
    return p.ethernet(start + b"\xc0\0\2\1\xc0\0\2\2" + options + payload, p.IPV4)


def to(port: int) -> bytes:
    return struct.pack("!HHHH", 5000, port, 508, 0) + bytes(500)


@pytest.mark.parametrize(
    ("frame", "is_whole"),
    [
        (p.ethernet(p.ipv6(p.tcp() + bytes(500))), False),
        (p.ethernet(p.ipv6(to(1094), p.UDP)), False),
        (p.ethernet(p.ipv6(to(firefly.PORT), p.UDP)), True),
        (p.ethernet(p.ipv6(exthdr.encode(*CMS, p.UDP) + to(firefly.PORT), p.DESTINATION)), True),
        (ipv4(to(1094)), False),
        (ipv4(to(firefly.PORT)), True),
        (ipv4(to(firefly.PORT), options=b"\1" * 8), True),
        # too short for what the filter reads of others: the last octet of a fragmented datagram
        (ipv4(b"x", offset=100), True),
        (p.ethernet(p.ipv6(b"x", p.UDP)), True),
        (p.ethernet(to(1094), p.ARP), True),
    ],
)
def test_how_much_of_each_packet_is_taken(pair: Pair, live: LiveCapture, frame: bytes, is_whole: bool) -> None:
    with pair.alice.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sender:
        sender.bind(("alice0", 0))
        sender.send(frame)
    taken = [(buffer[at : at + octets], wire) for _, _, buffer, at, octets, wire in live.frames(lambda: False)]
    assert (frame if is_whole else frame[:128], len(frame)) in taken


@pytest.mark.parametrize(("direction", "expected"), [("in", {4001}), ("out", {4002}), ("both", {4001, 4002})])
def test_directions(pair: Pair, direction: str, expected: set[int]) -> None:
    with capture(pair.bob, "bob0", direction=direction) as live:
        with udp(pair.alice, 4001) as one, udp(pair.bob, 4002, BOB) as other:
            one.sendto(b"x", (BOB, 1094))
            other.sendto(b"x", (ALICE, 1094))
        ports = {int.from_bytes(one.ports[:2], "big") for one in packets(live) if one.protocol == p.UDP}
    assert ports == expected


def test_the_loopback_interface_has_each_packet_once(pair: Pair) -> None:
    with capture(pair.alice, "lo") as live:
        with udp(pair.alice, 4001, "::1") as sender, udp(pair.alice, 1094, "::1"):
            for _ in range(3):
                sender.sendto(b"x", ("::1", 1094))
        found = packets(live)
    assert [one.octets for one in found] == [49, 49, 49]


def ports(found: list[Packet]) -> list[int]:
    """Source ports of UDP datagrams of one octet."""
    return sorted(int.from_bytes(one.ports[:2], "big") for one in found if one.protocol == p.UDP and one.octets == 49)


def one_each(pair: Pair) -> None:
    """To bob from alice, from bob to alice, and from bob to himself."""
    with udp(pair.alice, 4001) as one, udp(pair.bob, 4002, BOB) as two, udp(pair.bob, 4003, "::1") as three:
        one.sendto(b"x", (BOB, 1094))
        two.sendto(b"x", (ALICE, 1094))
        with udp(pair.bob, 1094, "::1"):
            three.sendto(b"x", ("::1", 1094))


@pytest.mark.parametrize(
    ("direction", "expected"), [("both", [4001, 4002, 4003]), ("in", [4001, 4003]), ("out", [4002])]
)
def test_on_every_interface(pair: Pair, direction: str, expected: list[int]) -> None:
    with capture(pair.bob, "any", direction=direction) as live:
        one_each(pair)
        assert ports(packets(live)) == expected


def test_on_every_interface_also_one_that_came_later(pair: Pair) -> None:
    with capture(pair.bob, "any") as live, Namespace("carol") as carol:
        link(pair.bob, "bob1", carol, "carol0")
        frames = [
            p.ethernet(p.ipv6(p.tcp(), label=label.encode(*ATLAS, 3))),
            p.ethernet(p.ipv6(exthdr.encode(*CMS, p.TCP) + p.tcp(), p.DESTINATION), p.IPV6, (0x8100, 7)),
            p.ethernet(bytes.fromhex("6000000000000000") + bytes(60), p.ARP),  # what begins like IPv6 and is none
        ]
        with carol.entered():
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with sender:
            sender.bind(("carol0", 0))
            for frame in frames:
                sender.send(frame)
        found = [(one.label, one.header_tag) for one in packets(live) if one.protocol == p.TCP]
    assert found == [(label.encode(*ATLAS, 3), None), (0, CMS)]


def test_fireflies_on_every_interface(pair: Pair) -> None:
    datagram = firefly.encode(
        FlowEvent(state=FlowState.START, key=FlowKey.of(ALICE, 1, BOB, 2), tag=ATLAS, start_time=NOON),
        now=NOON,
        host="alice",
        app="test",
    )
    with capture(pair.bob, "any") as live:
        with udp(pair.alice) as sender:
            sender.sendto(datagram, (BOB, firefly.PORT))
        observation = observed(live)
    assert [one.tag for one in observation.announcements.events] == [ATLAS]


def test_on_several_interfaces(pair: Pair) -> None:
    with capture(pair.bob, "bob0", "lo", "bob0") as live:
        one_each(pair)
        assert ports(packets(live)) == [4001, 4002, 4003]
        assert live.dropped() == 0


def test_of_several_interfaces_one_may_go(pair: Pair) -> None:
    with capture(pair.bob, "lo", "bob0") as live:
        with udp(pair.alice, 4001) as sender:
            sender.sendto(b"x", (BOB, 1094))
        delete_link(pair.bob, "bob0")
        in_time = until(10)
        with udp(pair.bob, 4003, "::1") as sender, udp(pair.bob, 1094, "::1"):
            found: list[Packet] = []

            def go_on() -> bool:
                if live.notes():
                    sender.sendto(b"x", ("::1", 1094))
                return in_time() and 4003 not in ports(found)

            for _, one in live.packets(go_on):
                found.append(one)
        assert set(ports(found)) == {4001, 4003}
        assert live.notes() == ["interface 'bob0' is gone; what it had until then is counted, the others went on"]


def test_a_tunnel_that_the_kernel_made(pair: Pair, live: LiveCapture) -> None:
    """VXLAN between alice and bob, with a label and a firefly inside."""
    inside = {pair.alice: "2001:db8:5::1", pair.bob: "2001:db8:5::2"}
    for host, interface, own, far in ((pair.alice, "alice0", ALICE, BOB), (pair.bob, "bob0", BOB, ALICE)):
        with host.entered(), IPRoute() as netlink:
            below = netlink.link_lookup(ifname=interface)[0]
            try:
                netlink.link(
                    "add",
                    ifname="tunnel",
                    kind="vxlan",
                    vxlan_id=5,
                    vxlan_port=4789,
                    vxlan_link=below,
                    vxlan_local6=own,
                    vxlan_group6=far,
                    vxlan_udp_zero_csum6_rx=1,
                )
            except Exception as error:
                pytest.skip(f"needs VXLAN in the kernel: {error}")
        add_address(host, "tunnel", inside[host], 64)
        set_up(host, "tunnel")
    value = label.encode(*ATLAS, 5)
    datagram = firefly.encode(
        FlowEvent(
            state=FlowState.START,
            key=FlowKey.of(inside[pair.alice], 4001, inside[pair.bob], 1094, "udp"),
            tag=ATLAS,
            start_time=NOON,
            application="x" * 300,
        ),
        now=NOON,
        host="alice",
        app="test",
    )
    with udp(pair.alice, 4001, inside[pair.alice]) as sender:
        labelled(sender, inside[pair.bob], value)
        with udp(pair.bob, 1094, inside[pair.bob]) as receiver:
            receiver.settimeout(10)
            for _ in range(5):
                sender.sendto(b"x" * 100, (inside[pair.bob], 1094, value))
                receiver.recv(200)  # the first waits until the far end has been found
        sender.sendto(datagram, (inside[pair.bob], firefly.PORT))
    observation = observed(live)
    [row] = [one for one in observation.rows() if one.tag == ATLAS]
    assert (row.packets, row.octets, row.flows, row.confirmed) == (5, 5 * 148, 1, 1)
    assert observation.in_tunnels >= 6


def test_big_tcp_counts_its_octets(pair: Pair) -> None:
    """Packets above 64 KB, whose headers have no room for their length: as many octets as the interface counted."""
    for host, interface in ((pair.alice, "alice0"), (pair.bob, "bob0")):
        allow_big_tcp(host, interface)
    with capture(pair.bob, "bob0", direction="in") as live:
        before = received(pair.bob, "bob0")
        client, accepted = pair.connect(4001)
        with client, accepted:
            send_all(client, accepted, 20_000_000)
        after = received(pair.bob, "bob0")
        found = [one for _, one in live.packets(lambda: False)]
        assert live.dropped() == 0
    assert max(one.octets for one in found) > 65_575
    seen = sum(14 + one.octets for one in found)
    # Neighbours may be asked for before and after.
    assert after - before <= seen <= after - before + 1000


def received(host: Namespace, interface: str) -> int:
    """Octets, as the interface counts them."""
    with host.entered(), IPRoute() as netlink:
        [found] = netlink.link("get", ifname=interface)
        octets: int = found.get("stats64")["rx_bytes"]
        return octets


def send_all(client: socket.socket, accepted: socket.socket, octets: int) -> None:
    """Send so many octets, which somebody takes at the other end."""

    def take() -> None:
        while accepted.recv(1 << 20):
            pass

    taker = threading.Thread(target=take)
    taker.start()
    client.sendall(bytes(octets))
    client.shutdown(socket.SHUT_WR)
    taker.join(20)
    assert not taker.is_alive()


def test_vlans(pair: Pair, live: LiveCapture) -> None:
    """The kernel takes one tag off and keeps it aside; a second one stays where it was."""
    frames = [
        p.ethernet(p.ipv6(p.tcp(source=1), label=5), p.IPV6, (0x8100, 7)),
        p.ethernet(p.ipv6(p.tcp(source=2), label=5), p.IPV6, (0x88A8, 7), (0x8100, 9)),
    ]
    with pair.alice.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sender:
        sender.bind(("alice0", 0))
        for frame in frames:
            sender.send(frame)
    found = [one for one in packets(live) if one.label == 5]
    assert [(one.ports[:2], one.octets) for one in found] == [(b"\0\1", 67), (b"\0\2", 67)]


def test_an_interface_without_a_link_header(root: None) -> None:
    with Namespace("alice") as alice:
        with alice.entered():
            try:
                tun = os.open("/dev/net/tun", os.O_RDWR)
            except OSError as error:
                pytest.skip(f"needs /dev/net/tun: {error.strerror}")
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
        try:
            set_up(alice, "tun0")
            with capture(alice, "tun0") as live:
                os.write(tun, p.ipv6(p.tcp(), label=label.encode(*ATLAS)))
                [found] = packets(live)
        finally:
            os.close(tun)
    assert (found.label, found.octets) == (label.encode(*ATLAS), 67)


def test_times_are_those_of_the_capture(pair: Pair, live: LiveCapture) -> None:
    before = time.time_ns()
    with udp(pair.alice, 4001) as sender:
        sender.sendto(b"x", (BOB, 1094))
        time.sleep(0.2)
        sender.sendto(b"x", (BOB, 1094))
    time.sleep(0.2)
    after = time.time_ns()
    first, second = (at for at, one in live.packets(lambda: False) if one.ports[:2] == (4001).to_bytes(2, "big"))
    assert before <= first
    assert first + 200_000_000 <= second <= after - 200_000_000


def test_what_finds_no_place_is_counted(pair: Pair) -> None:
    """Two blocks, nobody who reads them, and more packets than they hold."""
    sent = 20_000
    with capture(pair.bob, "bob0", direction="in", buffer_octets=2 * BLOCK_OCTETS) as live:
        with udp(pair.alice, 4001) as sender:
            for _ in range(sent):
                sender.sendto(b"x" * 100, (BOB, 1094))
        got = [one for one in packets(live) if one.ports[:2] == (4001).to_bytes(2, "big")]
        lost = live.dropped()
        assert lost > 0
        assert len(got) > 0
        # Neighbours are asked for as well: a few packets more than ours may have been lost.
        assert sent <= len(got) + lost <= sent + 20
        assert live.dropped() == lost


def test_the_ring_goes_round(pair: Pair) -> None:
    """More blocks than the ring has, read as they come."""
    rounds, each = 12, 3000
    observation = Observation(REGISTRY)
    with (
        capture(pair.bob, "bob0", direction="in", buffer_octets=2 * BLOCK_OCTETS) as live,
        udp(pair.alice, 4001) as sender,
    ):
        for _ in range(rounds):
            for _ in range(each):
                sender.sendto(b"x" * 100, (BOB, 1094))
            observation.add_frames(live.frames(lambda: False))
        assert live.dropped() == 0
    assert flow_from(observation, 4001).total.packets == rounds * each
    # So much that the first block was used again.
    assert rounds * each * 128 > 2 * BLOCK_OCTETS


def test_an_interface_that_is_down_for_a_while(pair: Pair, live: LiveCapture) -> None:
    # Frames of our own: neighbours and addresses come back at the kernel's leisure.
    frame = p.ethernet(p.ipv6(p.udp(), p.UDP, label=5))
    with pair.alice.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sender:
        sender.bind(("alice0", 0))
        sender.send(frame)
        set_state(pair.bob, "bob0", "down")
        assert [one.label for one in packets(live) if one.label] == [5]
        set_state(pair.bob, "bob0", "up")
        go_on = until(20)
        found: list[Packet] = []
        while not found and go_on():
            sender.send(frame)
            found = [one for one in packets(live) if one.label]
    assert found


def set_state(host: Namespace, interface: str, state: str) -> None:
    with host.entered(), IPRoute() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname=interface)[0], state=state)


def test_an_interface_that_is_gone_is_said_to_be(pair: Pair, live: LiveCapture) -> None:
    with udp(pair.alice, 4001) as sender:
        sender.sendto(b"x", (BOB, 1094))
    time.sleep(0.2)
    delete_link(pair.bob, "bob0")
    observation = Observation(REGISTRY)
    with pytest.raises(CaptureUnavailable, match="interface 'bob0' is gone"):
        observation.add_frames(live.frames(until(10)))
    # What was captured before is not lost with it.
    assert flow_from(observation, 4001).total.packets == 1


def until(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() < deadline


@pytest.mark.parametrize("options", [[], ["-P"]], ids=["pcapng", "pcap"])
def test_what_dumpcap_captured(pair: Pair, tmp_path: Path, options: list[str]) -> None:
    dumpcap = shutil.which("dumpcap")
    if dumpcap is None:
        pytest.skip("needs dumpcap (Debian: wireshark-common)")
    path = tmp_path / "captured"
    command = [dumpcap, "-q", "-i", "bob0", "-f", "udp dst port 1094", "-c", "5", "-a", "duration:20", "-w", str(path)]
    capturing = pair.bob.popen([*command, *options], stderr=subprocess.PIPE)
    try:
        assert capturing.stderr is not None
        while b"File:" not in (line := capturing.stderr.readline()):
            assert line, "dumpcap ended"
        with udp(pair.alice, 4001) as sender:
            labelled(sender, BOB, label.encode(*ATLAS))
            for _ in range(5):
                sender.sendto(b"x" * 100, (BOB, 1094, label.encode(*ATLAS)))
        assert capturing.wait(30) == 0
    finally:
        capturing.kill()
        capturing.communicate()
    observation = Observation(REGISTRY)
    observation.add_frames(CaptureFile(path).frames())
    [row] = observation.rows()
    assert (row.tag, row.packets, row.octets) == (ATLAS, 5, 5 * 148)


@pytest.mark.parametrize("promiscuous", [True, False])
def test_promiscuous_while_it_captures(pair: Pair, promiscuous: bool) -> None:
    def count() -> int:
        with pair.bob.entered(), IPRoute() as netlink:
            found: int = netlink.link("get", ifname="bob0")[0].get("promiscuity")
            return found

    with capture(pair.bob, "bob0", promiscuous=promiscuous):
        assert count() == int(promiscuous)
    assert count() == 0


@pytest.mark.parametrize("name", ["no-such-if", "a-name-that-is-far-too-long", ""])
def test_an_unknown_interface_is_named(root: None, name: str) -> None:
    with pytest.raises(CaptureUnavailable, match=f"interface '{name}': "):
        LiveCapture(name)


def test_nothing_is_left_open(pair: Pair) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(3):
        capture(pair.bob, "bob0", buffer_octets=0).close()
        with pytest.raises(CaptureUnavailable):
            capture(pair.bob, "no-such-if")
    assert descriptors() == before
