"""Packets whose octets others may see: those that a tap looks at, and those that TCP keeps to send them again."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from pyroute2 import IPRoute

from scitags_agent.bpf.attach import attach
from scitags_agent.bpf.interfaces import matching
from scitags_agent.bpf.layout import GoOnIn
from scitags_agent.bpf.loader import MarkerProgram, pack_index
from scitags_agent.bpf.system_calls import delete_from_map, update_map
from scitags_core import label
from scitags_core.flow import FlowKey
from tests.netns import packets as p
from tests.netns import programs
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace, add_address, link
from tests.netns.watching import deliver

LABEL = label.encode(3, 14, 21)
TCP, UDP = FlowKey.of(ALICE, 40000, BOB, 1094), FlowKey.of(ALICE, 40000, BOB, 1094, "udp")
OCTETS = bytes(4 << 20)
DATAGRAMS = 200
FIRST_ONES = 3  # may wait for their neighbour, as clones
SOURCE_PORT = (40000).to_bytes(2, "big")


class Tap:
    """Each frame of the flow from alice, up to its ports, with the label and with it taken out."""

    def __init__(self, host: Namespace, interface: str) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        self._socket.bind((interface, 3))

    def frames(self) -> list[bytes]:
        """IPv6 frames of TCP and UDP from alice's port, since the last call."""
        found = []
        self._socket.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:
                frame = self._socket.recv(512)
                if frame[12:14] == b"\x86\xdd" and frame[20] in (p.TCP, p.UDP) and frame[54:56] == SOURCE_PORT:
                    found.append(frame)
        return found

    def close(self) -> None:
        self._socket.close()


def labels(frames: list[bytes], protocol: int) -> Counter[int]:
    return Counter(int.from_bytes(one[14:18], "big") & 0xFFFFF for one in frames if one[20] == protocol)


def unlabelled(frames: list[bytes]) -> list[bytes]:
    """From the IPv6 header on, without label and hop limit."""
    return [one[18:21] + one[22:] for one in frames]


def send(pair: Pair) -> None:
    """One whole connection from alice to bob, and datagrams."""
    with pair.bob.entered():
        sink = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with pair.alice.entered():
        source = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with sink, source:
        sink.bind((BOB, 1094))
        source.bind((ALICE, 40000))
        sink.settimeout(5)
        for number in range(DATAGRAMS):
            source.sendto(number.to_bytes(2, "big") * 20, (BOB, 1094))
        assert [sink.recv(64) for _ in range(DATAGRAMS)] == [one.to_bytes(2, "big") * 20 for one in range(DATAGRAMS)]
    client, server = pair.connect(40000)
    with client, server:
        deliver(client, server, OCTETS)


@contextlib.contextmanager
def marking(host: Namespace, interface: str, program: MarkerProgram) -> Iterator[None]:
    program.set(TCP, LABEL)
    program.set(UDP, LABEL)
    with host.entered():
        attached = attach(program, matching([interface])[0].index, ethernet=True, way="auto")
    try:
        yield
    finally:
        with host.entered():
            attached.detach()


def test_a_tap_at_the_sender_sees_what_the_wire_had(pair: Pair, program: MarkerProgram) -> None:
    with contextlib.closing(Tap(pair.alice, "alice0")) as tap, contextlib.closing(Tap(pair.bob, "bob0")) as wire:
        with marking(pair.alice, "alice0", program):
            send(pair)
        sent, arrived = tap.frames(), wire.frames()
    assert sent == arrived
    assert labels(arrived, p.UDP) == {LABEL: DATAGRAMS}
    assert set(labels(arrived, p.TCP)) == {LABEL}
    assert {name: count for name, count in program.outcomes().items() if count} == {"marked": len(arrived)}


@pytest.fixture
def routed() -> Iterator[tuple[Pair, Namespace]]:
    """Alice and bob, with a router between them whose ends are router0 and router1."""
    with ExitStack() as stack:
        alice, bob, router = (stack.enter_context(Namespace(name)) for name in ("alice", "bob", "router"))
        link(alice, "alice0", router, "router0")
        link(router, "router1", bob, "bob0")
        for host in (alice, bob, router):
            host.set_sysctl("ipv6/auto_flowlabels", "0")
        router.set_sysctl("ipv6/conf/all/forwarding", "1")
        for host, interface, end, net in ((alice, "alice0", ALICE, "a"), (bob, "bob0", BOB, "b")):
            near, far = f"2001:db8:{net}::1", f"2001:db8:{net}::2"
            add_address(host, interface, end, 128)
            add_address(host, interface, near, 64)
            add_address(router, f"router{'ab'.index(net)}", far, 64)
            add_route(router, end, near)
            add_route(host, BOB if end == ALICE else ALICE, far)
        yield Pair(alice, bob), router


def add_route(host: Namespace, destination: str, gateway: str) -> None:
    with host.entered(), IPRoute() as netlink:
        netlink.route("add", dst=f"{destination}/128", gateway=gateway, family=socket.AF_INET6)


def test_a_tap_where_packets_come_in_keeps_what_came_in(routed: tuple[Pair, Namespace], program: MarkerProgram) -> None:
    """What is forwarded is shared with the tap: it is copied before it is written to."""
    pair, router = routed
    with contextlib.closing(Tap(router, "router0")) as tap, contextlib.closing(Tap(pair.bob, "bob0")) as wire:
        with marking(router, "router1", program):
            send(pair)
        came, arrived = tap.frames(), wire.frames()
    assert unlabelled(came) == unlabelled(arrived)
    for protocol in (p.TCP, p.UDP):
        assert set(labels(came, protocol)) == {0}
        assert set(labels(arrived, protocol)) == {LABEL}
    assert {name: count for name, count in program.outcomes().items() if count} == {"marked": len(arrived)}


def test_what_is_forwarded_and_shared_with_nobody_is_written_in_place(
    routed: tuple[Pair, Namespace], bpf: None
) -> None:
    """It bears the interface that it came in by, and is asked for a sum of the hardware's first."""
    pair, router = routed
    program = MarkerProgram(64)
    with (
        contextlib.closing(program),
        contextlib.closing(Tap(pair.bob, "bob0")) as wire,
        programs.loaded(programs.returning(programs.TC_ACT_UNSPEC)) as nothing,
        marking(router, "router1", program),
    ):
        send(pair)
        assert labels(wire.frames(), p.UDP) == {LABEL: DATAGRAMS}
        set_program(program, GoOnIn.IN_PLACE_ETHERNET, nothing)
        send(pair)
        assert labels(wire.frames(), p.UDP)[0] >= DATAGRAMS - FIRST_ONES


def test_what_tcp_keeps_is_written_by_the_helper_and_the_rest_in_place(pair: Pair, bpf: None) -> None:
    """With a program that does nothing in the place of the one that writes in place, what goes there is not marked."""
    program = MarkerProgram(64)
    with (
        contextlib.closing(program),
        programs.loaded(programs.returning(programs.TC_ACT_UNSPEC)) as nothing,
        contextlib.closing(Tap(pair.bob, "bob0")) as wire,
        marking(pair.alice, "alice0", program),
    ):
        set_program(program, GoOnIn.IN_PLACE_ETHERNET, nothing)
        send(pair)
        arrived = wire.frames()
    assert labels(arrived, p.UDP)[0] >= DATAGRAMS - FIRST_ONES
    data = [one for one in arrived if one[20] == p.TCP and int.from_bytes(one[18:20], "big") > 100]
    assert labels(data, p.TCP) == {LABEL: len(data)}
    assert len(data) > 10


def test_without_the_other_programs_the_attached_one_does_it_all(pair: Pair, bpf: None) -> None:
    """The kernel takes them away when the process ends that loaded them; what is attached may stay."""
    program = MarkerProgram(64)
    with (
        contextlib.closing(program),
        contextlib.closing(Tap(pair.bob, "bob0")) as wire,
        marking(pair.alice, "alice0", program),
    ):
        for index in GoOnIn:
            delete_from_map(program.object.map_fd("programs"), pack_index(index))
        send(pair)
        arrived = wire.frames()
    assert labels(arrived, p.UDP) == {LABEL: DATAGRAMS}
    assert set(labels(arrived, p.TCP)) == {LABEL}


def set_program(program: MarkerProgram, index: GoOnIn, descriptor: int) -> None:
    programs_map = program.object.map_fd("programs")
    update_map(programs_map, pack_index(index), pack_index(descriptor))
