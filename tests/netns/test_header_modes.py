"""Which way each flow's headers take, on packets and links of all kinds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scitags_agent import tc_headers
from scitags_agent.namespaces import number_of
from scitags_agent.reserved_routes import ReservedRoutes
from scitags_agent.too_big import TooBigMessages
from scitags_core import label
from scitags_core.flow import FlowKey
from scitags_core.roles import FlowMark
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace, add_address, allow_big_tcp, link, set_up
from tests.netns.test_extension_header import DESTINATION, IPV6_DSTOPTS, OWN, Tap, headers_of, parsed, until
from tests.netns.test_marker_links import IFF_NO_PI, IFF_TUN, TUNSETIFF, read_packets
from tests.netns.test_tc_headers import MARKED, at_tc, our_routes, with_data
from tests.netns.watching import ATLAS, ETH_P_ALL, FLOW, Seen, deliver, end, run, running, start

UDP_SEGMENT = 103  # linux/udp.h
IPV6_MTU_DISCOVER = 23  # linux/in6.h
IPV6_PMTUDISC_WANT, IPV6_PMTUDISC_DO, IPV6_PMTUDISC_PROBE = 1, 2, 3


@pytest.fixture
def tap(pair: Pair, bpf: None) -> Any:
    one = Tap(pair.bob, "bob0")
    yield one
    one.close()


# --- the best way for each flow ---------------------------------------------------------------------


def test_a_flow_goes_over_to_its_socket_as_soon_as_that_is_there(pair: Pair, tap: Tap) -> None:
    """At tc from the SYN on, with room once it has waited; on the socket, and the route as it was, in the end."""

    async def scenario() -> None:
        async with at_tc(pair.alice, mode="auto") as backend:
            await backend.handle([start()])
            mark = backend.mark_of(FLOW)
            assert mark is not None
            assert mark.by == "header: tc, what fits"
            assert mark.why.endswith("; route: no room is kept free for it yet")
            assert our_routes(pair.alice) == {}
            await until(backend, "connections_with_room")
            assert backend.mark_of(FLOW) == FlowMark(
                "header: tc, room by route", "socket: no such connection is open on this host"
            )
            assert our_routes(pair.alice) == {BOB: 1492}
            client, server = pair.connect(40000)
            await until(backend, "connections")
            deliver(client, server, bytes(4 << 20))
            assert headers_of(tap.packets()) == {MARKED}
            assert backend.mark_of(FLOW) == FlowMark("header: socket")
            assert backend.counters()["connections_at_tc"] == 0
            await asyncio.sleep(0.1)
            assert our_routes(pair.alice) == {}
            await backend.handle([end()])
            await until(backend, "headers_removed")
            assert backend.mark_of(FLOW) is None
            deliver(client, server)
            assert () in headers_of(tap.packets())
            client.close()
            server.close()

    run(scenario())


def test_a_short_transfer_changes_no_route(pair: Pair, tap: Tap) -> None:
    async def scenario() -> None:
        async with at_tc(pair.alice, mode="auto") as backend:
            client, server = pair.connect(40000)
            tap.packets()
            await backend.handle([start()])
            await until(backend, "connections")
            assert our_routes(pair.alice) == {}
            deliver(client, server)
            assert headers_of(tap.packets()) == {MARKED}
            client.close()
            server.close()

    run(scenario())


def test_options_of_the_application_stay(pair: Pair, tap: Tap) -> None:
    async def scenario() -> None:
        async with at_tc(pair.alice, mode="auto") as backend:
            client, server = pair.connect(40000)
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, OWN)
            tap.packets()
            await backend.handle([start()])
            await until(backend, "unmarked_own_options")
            deliver(client, server)
            assert headers_of(tap.packets()) == {((DESTINATION, None),)}
            assert backend.mark_of(FLOW) == FlowMark("unmarked", "its application has set options of its own")
            client.close()
            server.close()

    run(scenario())


def test_options_of_the_application_stay_at_tc(pair: Pair, tap: Tap) -> None:
    async def scenario() -> None:
        async with at_tc(pair.alice) as backend:
            client, server = pair.connect(40000)
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, OWN)
            await backend.handle([start()])
            tap.packets()
            deliver(client, server)
            assert headers_of(tap.packets()) == {((DESTINATION, None),)}
            assert backend.counters()["packets_others"] > 0
            client.close()
            server.close()

    run(scenario())


@pytest.mark.parametrize("by", ["tc", "auto"])
def test_label_and_header_at_once(pair: Pair, tap: Tap, by: str) -> None:
    """Labels by the program at tc, or by the kernel; headers at tc."""
    pair.alice.set_sysctl("ipv6/auto_flowlabels", "1")
    seen = Seen(pair.bob, "bob0")

    async def scenario() -> None:
        async with running(pair.alice, label=by) as marker, at_tc(pair.alice) as backend:
            for one in (marker, backend):
                await one.handle([start()])
            client, server = pair.connect(40000)
            while by == "auto" and not marker.counters()["connections_by_kernel"]:
                deliver(client, server, b"x")  # the kernel begins with the next packet
                await asyncio.sleep(0.02)
            deliver(client, server, bytes(4 << 20))
            packets = tap.packets()
            assert headers_of(packets) == {MARKED}
            assert len({one.label for one in packets}) == 1
            assert label.decode(packets[0].label).tag == ATLAS
            assert seen.labels()[40000, 1094] == {packets[0].label}
            assert marker.mark_of(FLOW).by == ("label: tc" if by == "tc" else "label: kernel")
            client.close()
            server.close()

    try:
        run(scenario())
    finally:
        seen.close()


# --- packets and links of other kinds -----------------------------------------------------------------


def test_datagrams_and_those_that_the_kernel_cuts(pair: Pair, tap: Tap) -> None:
    flow = FlowKey.of(ALICE, 40000, BOB, 1094, "udp")
    frames = Datagrams(pair.bob, "bob0")

    async def scenario() -> None:
        async with at_tc(pair.alice) as backend:
            await backend.handle([start(flow)])
            with pair.bob.entered():
                receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                receiver.bind((BOB, 1094))
            with pair.alice.entered():
                sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            with sender, receiver:
                sender.bind((ALICE, 40000))
                sender.connect((BOB, 1094))
                for size in (1, 1444):  # 1444: as much as is left beside our header
                    sender.send(bytes(size))
                sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1200)
                sender.send(bytes(10 * 1200))
                sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
                sender.send(bytes(4000))  # goes in fragments
            found = frames.read()
            assert {headers for headers, _ in found if headers is not None} == {(ATLAS,)}
            sizes = [size for headers, size in found if headers is not None]
            assert sizes[:2] == [1, 1444]
            assert sum(sizes[2:]) == 12000
            counters = backend.counters()
            assert counters["packets_marked"] == 3
            assert counters["packets_fragment"] == 1

    try:
        run(scenario())
    finally:
        frames.close()


def test_an_accepted_connection_does_not_wait_when_room_is_made(pair: Pair) -> None:
    """Its first segments are still as long as before: none is refused, and what was set for that is given back."""
    flow, before = FLOW.reversed(), IPV6_PMTUDISC_WANT

    async def scenario() -> None:
        client, server = pair.connect(40000)
        tap = Tap(pair.bob, "bob0")
        with server, client, contextlib.closing(tap):
            async with at_tc(pair.bob, mode="auto") as backend:
                await backend.handle([start(flow)])
                await until(backend, "connections_with_room")
                assert server.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) == IPV6_PMTUDISC_PROBE
                deliver(server, client)
                assert refused_packets(pair.bob) == 0
                async with asyncio.timeout(10):
                    while server.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) != before:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                tap.packets(flow)
                deliver(server, client)
                assert headers_of(tap.packets(flow)) == {MARKED}
                assert refused_packets(pair.bob) == 0

    run(scenario())


def test_what_was_set_for_an_idle_connection_is_given_back_at_the_end(pair: Pair) -> None:
    flow = FLOW.reversed()

    async def scenario() -> None:
        client, server = pair.connect(40000)
        with server, client:
            for is_stopped in (False, True):
                async with at_tc(pair.bob, mode="auto") as backend:
                    await backend.handle([start(flow)])
                    await until(backend, "connections_with_room")
                    if not is_stopped:
                        await backend.handle([end(flow)])
                        async with asyncio.timeout(10):
                            while server.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) != IPV6_PMTUDISC_WANT:  # noqa: ASYNC110
                                await asyncio.sleep(0.01)
                assert server.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) == IPV6_PMTUDISC_WANT

    run(scenario())


def refused_packets(host: Namespace) -> int:
    """That were longer than their route lets through."""
    with host.entered():
        lines = Path("/proc/thread-self/net/snmp6").read_text(encoding="ascii").splitlines()
    return int(dict(line.split() for line in lines)["Ip6FragFails"])


@pytest.mark.parametrize("mode", ["auto", "tc"])
def test_datagrams_as_long_as_the_path_allows_leave_as_they_are(pair: Pair, mode: str) -> None:
    """As QUIC sends them: the kernel is to cut none, and refuses what is too long."""
    flow = FlowKey.of(ALICE, 40000, BOB, 1094, "udp")
    frames = Datagrams(pair.bob, "bob0")

    async def scenario() -> None:
        with pair.bob.entered():
            receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with pair.alice.entered():
            sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with sender, receiver:
            receiver.bind((BOB, 1094))
            sender.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO)
            sender.bind((ALICE, 40000))
            sender.connect((BOB, 1094))
            async with at_tc(pair.alice, mode=mode) as backend:
                await backend.handle([start(flow)])
                if mode == "auto":
                    await until(backend, "tc_own_sizes")
                for size in (1444, 1445, 1452):
                    sender.send(bytes(size))
                assert frames.read() == [((ATLAS,), 1444), ((), 1445), ((), 1452)]
                assert our_routes(pair.alice) == {}
                counters = backend.counters()
                assert (counters["packets_marked"], counters["packets_no_room"]) == (1, 2)
                mark = backend.mark_of(flow)
                assert mark is not None
                assert mark.by == "header: tc, what fits"

    try:
        run(scenario())
    finally:
        frames.close()


class Datagrams:
    """UDP packets that an interface receives: the tags in their headers (None: a fragment), octets of data."""

    def __init__(self, host: Namespace, interface: str) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.bind((interface, ETH_P_ALL))
        self._socket.settimeout(0.2)

    def read(self) -> list[tuple[tuple[Any, ...] | None, int]]:
        found: list[tuple[tuple[Any, ...] | None, int]] = []
        with contextlib.suppress(TimeoutError):
            while True:
                octets = self._socket.recv(1 << 17)
                kind, at, tags = octets[6], 40, []
                while kind in (0, 60):
                    tags.append(ATLAS if octets[at + 4 : at + 7] == bytes((0, ATLAS.experiment, ATLAS.activity)) else 0)
                    kind, at = octets[at], at + 8
                if kind == socket.IPPROTO_UDP:
                    found.append((tuple(tags), len(octets) - at - 8))
                elif kind == 44:
                    found.append((None, 0))
        return found

    def close(self) -> None:
        self._socket.close()


def test_a_device_without_link_layer(pair: Pair, bpf: None) -> None:
    with pair.alice.entered():
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    add_address(pair.alice, "tun0", "2001:db8:7::1", 64)
    set_up(pair.alice, "tun0")
    flow = FlowKey.of("2001:db8:7::1", 40000, "2001:db8:7::2", 1094)

    async def scenario() -> None:
        async with at_tc(pair.alice, interfaces=["tun0"]) as backend:
            await backend.handle([start(flow)])
            with pair.alice.entered():
                client = socket.socket(socket.AF_INET6)
            with client:
                client.bind(("2001:db8:7::1", 40000))
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(("2001:db8:7::2", 1094))
                found = [parsed(one) for one in read_packets(tun)]
            assert headers_of([one for one in found if one is not None]) == {MARKED}

    try:
        run(scenario())
    finally:
        os.close(tun)


def test_big_tcp_is_left_alone_and_counted(pair: Pair, tap: Tap) -> None:
    for host, interface in ((pair.alice, "alice0"), (pair.bob, "bob0")):
        allow_big_tcp(host, interface)

    async def scenario() -> None:
        async with at_tc(pair.alice) as backend:
            await backend.handle([start()])
            client, server = pair.connect(40000)
            deliver(client, server, bytes(64 << 20))
            counters = backend.counters()
            assert counters["packets_big"] > 0
            assert counters["packets_failed"] == counters["packets_malformed"] == 0
            client.close()
            server.close()

    run(scenario())


@pytest.mark.parametrize(("mode", "counter"), [("auto", "tc_big_tcp"), ("socket", "unmarked_big_tcp")])
def test_no_header_on_a_socket_whose_packets_may_be_big(pair: Pair, bpf: None, mode: str, counter: str) -> None:
    """The kernel would leave its own in the segments, which nobody takes then."""
    allow_big_tcp(pair.alice, "alice0")

    async def scenario() -> None:
        client, server = pair.connect(40000)
        with client, server:
            async with at_tc(pair.alice, mode=mode) as backend:
                await backend.handle([start()])
                await until(backend, counter)
                assert client.getsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, 64) == b""
                mark = backend.mark_of(FLOW)
                assert mark is not None
                assert "its packets may be longer than 64 KB (BIG TCP)" in mark.why

    run(scenario())


def test_several_network_namespaces(pair: Pair, bpf: None) -> None:
    """The agent on alice serves carol as well, and carol's routes are hers."""
    with ExitStack() as stack:
        carol = stack.enter_context(Namespace("carol"))
        link(carol, "carol0", pair.bob, "bob1")
        add_address(carol, "carol0", "2001:db8:9::1", 64)
        add_address(pair.bob, "bob1", "2001:db8:9::2", 64)
        tap = Tap(pair.bob, "bob1")
        stack.callback(tap.close)
        flow = FlowKey.of("2001:db8:9::1", 40000, "2001:db8:9::2", 1094)

        async def scenario() -> None:
            async with at_tc(pair.alice, namespaces=[carol.path]) as backend:
                await backend.handle([start(flow), start()])
                assert our_routes(pair.alice) == {BOB: 1492}
                assert our_routes(carol) == {"2001:db8:9::2": 1492}
                with pair.bob.entered():
                    server = socket.create_server(("2001:db8:9::2", 1094), family=socket.AF_INET6)
                with carol.entered():
                    client = socket.socket(socket.AF_INET6)
                with server, client:
                    client.bind(("2001:db8:9::1", 40000))
                    client.connect(("2001:db8:9::2", 1094))
                    accepted, _ = server.accept()
                    with accepted:
                        deliver(client, accepted)
                assert headers_of(with_data(tap.packets(flow))) == {MARKED}
            assert our_routes(carol) == our_routes(pair.alice) == {}

        run(scenario())


def test_a_namespace_that_goes_as_the_agent_begins_costs_the_others_nothing(
    pair: Pair, bpf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tc_headers._open_too_big
    gone = [number_of(pair.bob.path)]

    def opened(routes: ReservedRoutes, namespace: int) -> TooBigMessages:
        if namespace in gone:
            raise FileNotFoundError(errno.ENOENT, "it has gone")
        return whole(routes, namespace)

    monkeypatch.setattr(tc_headers, "_open_too_big", opened)

    async def scenario() -> None:
        async with at_tc(pair.alice, namespaces=[pair.bob.path]) as backend:
            await backend.handle([start()])
            assert our_routes(pair.alice) == {BOB: 1492}

    run(scenario())
