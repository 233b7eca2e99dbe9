"""The marker on packets and links of all kinds, and beside other people's TCX programs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from pyroute2 import IPRoute

from scitags_agent.backends.marker import StaticMark
from scitags_agent.bpf import attach, clsact
from scitags_agent.bpf.interfaces import matching
from scitags_agent.bpf.loader import MarkerProgram
from scitags_core import label
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag
from tests.netns import packets as p
from tests.netns import programs
from tests.netns.conftest import Pair
from tests.netns.namespaces import Namespace, add_address, allow_big_tcp, set_mtu, set_up
from tests.netns.watching import ATLAS, CMS, ETH_P_ALL, OTHER, Seen, deliver, run, running, start, transfer

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR = 263, 8, 15
LABEL = label.encode(3, 14, 21)


@pytest.mark.parametrize("static", [None, CMS], ids=["flows alone", "static tag"])
def test_a_device_without_link_layer(pair: Pair, bpf: None, static: Tag | None) -> None:
    """A tun device: its packets begin with the IP header."""
    others = [] if static is None else [StaticMark(static.experiment, static.activity)]
    with pair.alice.entered():
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    add_address(pair.alice, "tun0", "2001:db8:7::1", 64)
    set_up(pair.alice, "tun0")
    flow = FlowKey.of("2001:db8:7::1", 40000, "2001:db8:7::2", 1094, "udp")

    async def scenario() -> None:
        async with running(pair.alice, interfaces=["tun0"], static=others) as marker:
            await marker.handle([start(flow)])
            with pair.alice.entered():
                sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            with sender:
                sender.bind(("2001:db8:7::1", 40000))
                for port in (1094, 1095):
                    sender.sendto(b"x", ("2001:db8:7::2", port))
            found = {}
            for packet in read_packets(tun):
                if packet[6] == socket.IPPROTO_UDP:
                    found[int.from_bytes(packet[42:44], "big")] = int.from_bytes(packet[:4], "big") & 0xFFFFF
            assert (label.decode(found[1095]).tag if found[1095] else None) == static
            assert label.decode(found[1094]).tag == ATLAS

    try:
        run(scenario())
    finally:
        os.close(tun)


def read_packets(tun: int) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield os.read(tun, 2048)


def test_big_tcp_packets_are_labelled_too(pair: Pair, bpf: None) -> None:
    """Packets above 64 KB have a jumbo header between IPv6 and TCP (RFC 2675)."""
    for host, interface in ((pair.alice, "alice0"), (pair.bob, "bob0")):
        allow_big_tcp(host, interface)
    tap = Seen(pair.alice, "alice0")

    async def scenario() -> None:
        async with running(pair.alice) as marker:
            await marker.handle([start()])
            client, server = pair.connect(40000)
            deliver(client, server, bytes(64 << 20))
            words = tap.words()[40000, 1094]
            client.close()
            server.close()
            assert tap.jumbograms > 0, "the kernel made no packet above 64 KB"
            assert {label.decode(word & 0xFFFFF).tag for word in words} == {ATLAS}

    try:
        run(scenario())
    finally:
        tap.close()


@pytest.mark.parametrize("kinds", [[0x8100], [0x8100, 0x88A8]])
def test_a_vlan_tag_in_the_metadata(pair: Pair, program: MarkerProgram, kinds: list[int]) -> None:
    """Foreign filters before ours give the packet its tags: the last stands in the metadata, others in the data."""
    program.set(FlowKey.of(p.SRC, 40000, p.DST, 1094, "udp"), LABEL)
    frames = Frames(pair.bob, "bob0")
    with ExitStack() as stack:
        stack.callback(frames.close)
        sender = stack.enter_context(socket_on(pair.alice, "alice0", 0))
        with pair.alice.entered(), IPRoute() as netlink:
            index = matching(["alice0"])[0].index
            netlink.tc("add", "clsact", index, clsact.CLSACT_HANDLE)
            for priority, kind in enumerate(kinds, 1):
                foreign = stack.enter_context(programs.loaded(programs.pushing_vlan(kind, 5 + priority)))
                netlink.tc(
                    "add-filter", "bpf", index, 1, fd=foreign, name="foreign",
                    parent=clsact.EGRESS, prio=priority, protocol=ETH_P_ALL, direct_action=True,
                )  # fmt: skip
            ours = attach.attach(program, index, ethernet=True, way="clsact")
            for port in (40000, 40001):
                sender.send(p.ethernet(p.ipv6(p.udp(port, 1094), p.UDP)))
            ours.detach()
        seen = {port: (tag, in_data, packet) for port, tag, in_data, packet in frames}
    inner = struct.pack("!HH", 6, p.IPV6) if len(kinds) > 1 else b""
    for port, expected in ((40000, LABEL), (40001, 0)):
        tag, in_data, packet = seen[port]
        assert tag == (kinds[-1], 5 + len(kinds))
        assert in_data == inner
        assert int.from_bytes(packet[:4], "big") & 0xFFFFF == expected


class Frames:
    """UDP packets that an interface receives: source port, VLAN tag in metadata, tags in the data, IPv6 packet."""

    def __init__(self, host: Namespace, interface: str) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind((interface, ETH_P_ALL))
        self._socket.settimeout(0.3)

    def __iter__(self) -> Iterator[tuple[int, tuple[int, int], bytes, bytes]]:
        with contextlib.suppress(TimeoutError):
            while True:
                frame, ancillary, _, _ = self._socket.recvmsg(2048, 256)
                [auxiliary] = [data for level, kind, data in ancillary if (level, kind) == (SOL_PACKET, PACKET_AUXDATA)]
                at = 14 if frame[12:14] == b"\x86\xdd" else 18
                if frame[at + 6] == socket.IPPROTO_UDP:
                    tci, protocol = struct.unpack_from("=HH", auxiliary, 16)
                    port = int.from_bytes(frame[at + 40 : at + 42], "big")
                    yield port, (protocol, tci), frame[14:at], frame[at:]

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("kind", ["plain", "VLAN", "extension header"])
def test_headers_outside_the_linear_part_of_the_packet(pair: Pair, program: MarkerProgram, kind: str) -> None:
    """A packet socket that says its header has 14 octets makes packets of which only those are linear."""
    payload = p.udp() + bytes(5000)
    frame, at = {
        "plain": (p.ethernet(p.ipv6(payload, p.UDP)), 14),
        "VLAN": (p.ethernet(p.ipv6(payload, p.UDP), p.IPV6, (0x8100, 5)), 18),
        "extension header": (p.ethernet(p.ipv6(p.extension(p.UDP, 3) + payload, p.DESTINATION)), 14),
    }[kind]
    program.set(FlowKey.of(p.SRC, 1094, p.DST, 43720, "udp"), LABEL)
    for host, name in ((pair.alice, "alice0"), (pair.bob, "bob0")):
        set_mtu(host, name, 9000)
    tap = socket_on(pair.bob, "bob0", ETH_P_ALL)
    sender = socket_on(pair.alice, "alice0", 0)
    with tap, sender, pair.alice.entered():
        ours = attach.attach(program, matching(["alice0"])[0].index, ethernet=True, way="auto")
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.send(struct.pack("=BBHHHH", 0, 0, 14, 0, 0, 0) + frame)
        ours.detach()
        while len(received := tap.recv(9000)) < 5000:
            pass
    word = (int.from_bytes(frame[at : at + 4], "big") & 0xFFF00000 | LABEL).to_bytes(4, "big")
    expected = frame[:at] + word + frame[at + 4 :]
    # A tag leaves the data for the metadata when the packet arrives.
    assert received == (expected if kind != "VLAN" else expected[:12] + expected[16:])
    assert program.outcomes()["marked"] == 1


def socket_on(host: Namespace, interface: str, protocol: int) -> socket.socket:
    """A raw packet socket on an interface."""
    with host.entered():
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    one.bind((interface, protocol))
    one.settimeout(5)
    return one


def test_foreign_tcx_programs_before_and_after_ours(pair: Pair, seen: Seen, bpf: None) -> None:
    """Ours stands first, whoever was there before, and every packet goes on to them."""

    async def scenario() -> None:
        with ExitStack() as stack:
            first, last = (stack.enter_context(counting(OTHER)) for _ in range(2))
            with pair.alice.entered():
                index = matching(["alice0"])[0].index
                stack.enter_context(programs.linked(first.program_fd(ethernet=True), index))
            async with running(pair.alice, attach="tcx") as marker:
                await marker.handle([start(), start(OTHER)])
                with pair.alice.entered():
                    stack.enter_context(programs.linked(last.program_fd(ethernet=True), index))
                for port in (40000, 40001):
                    transfer(pair, port)
                words = seen.words()
                assert {label.decode(word & 0xFFFFF).tag for word in words[40000, 1094]} == {ATLAS}
                passed = words[40001, 1094].total()
                assert first.outcomes()["marked"] == last.outcomes()["marked"] == passed > 5
            transfer(pair, 40001)
            assert first.outcomes()["marked"] == last.outcomes()["marked"] > passed

    run(scenario())


def test_a_foreign_tcx_program_that_ends_the_chain(pair: Pair, seen: Seen, bpf: None) -> None:
    async def scenario() -> None:
        with ExitStack() as stack:
            foreign = stack.enter_context(programs.loaded(programs.returning(programs.TC_ACT_OK)))
            with pair.alice.entered():
                stack.enter_context(programs.linked(foreign, matching(["alice0"])[0].index))
            async with running(pair.alice, attach="tcx") as marker:
                await marker.handle([start()])
                transfer(pair, 40000)
                assert {label.decode(word & 0xFFFFF).tag for word in seen.words()[40000, 1094]} == {ATLAS}

    run(scenario())


@contextlib.contextmanager
def counting(flow: FlowKey) -> Iterator[MarkerProgram]:
    """A program that counts the packets of a flow, as somebody else's might."""
    program = MarkerProgram(64)
    program.set(flow, LABEL)
    try:
        yield program
    finally:
        program.close()
