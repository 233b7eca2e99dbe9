"""Routes that keep room for headers: copies of what packets take, that follow it, and are taken away."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pyroute2 import IPRoute

from scitags_agent.reserved_routes import PROTOCOL, ReservedRoutes, Room, remove_left
from scitags_agent.rtnetlink import RouteSocket
from scitags_core.flow import FlowKey
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace, add_address, link, set_mtu, switch_off_segmentation
from tests.netns.test_extension_header import Tap, headers_of
from tests.netns.test_tc_headers import MARKED, at_tc, our_routes, with_data
from tests.netns.watching import deliver, run, start

ROOM = 8
FAR = "2001:db8:f::1"
GATEWAY = "2001:db8::99"
PLACE = (0, FAR)
LEARNED_SECONDS = 600


@pytest.fixture
def routes(pair: Pair) -> Iterator[ReservedRoutes]:
    """On alice, in this thread, that has a default route by a gateway."""
    with pair.alice.entered():
        change(pair, "add", dst="default", gateway=BOB, priority=1024, metrics={"initcwnd": 20})
        one = ReservedRoutes(ROOM)
        yield one
        one.close(keep=False)
        assert ours() == []


def change(pair: Pair, what: str, **route: Any) -> None:
    with pair.alice.entered(), IPRoute() as netlink:
        index = netlink.link_lookup(ifname="alice0")[0]
        netlink.route(what, oif=index, family=socket.AF_INET6, **route)


def ours() -> list[Any]:
    with IPRoute() as netlink:
        return [one for one in netlink.get_routes(family=socket.AF_INET6) if one["proto"] == PROTOCOL]


def shown(route: Any) -> dict[str, Any]:
    return {
        "to": f"{route.get_attr('RTA_DST')}/{route['dst_len']}",
        "via": route.get_attr("RTA_GATEWAY"),
        "priority": route.get_attr("RTA_PRIORITY"),
        **dict(route.get_attr("RTA_METRICS")["attrs"]),
    }


def looked(routes: ReservedRoutes, now: float = 1.0) -> dict[tuple[int, str], Room]:
    routes.heard()
    return routes.look(now)


def test_a_copy_of_the_route_in_use_for_one_destination(routes: ReservedRoutes) -> None:
    """What others send to us stays as long as before: the MSS that we announce is as of the whole MTU."""
    assert routes.place_of(ALICE, FAR) == PLACE
    assert routes.reserve(PLACE, ALICE, 0) == Room(1500, 1492)
    [route] = map(shown, ours())
    assert route == {
        "to": f"{FAR}/128", "via": BOB, "priority": 1024,
        "RTAX_MTU": 1492, "RTAX_ADVMSS": 1440, "RTAX_INITCWND": 20,
    }  # fmt: skip
    assert routes.reserve(PLACE, ALICE, 0) == Room(1500, 1492)
    routes.release(PLACE)
    assert len(ours()) == 1
    routes.release(PLACE)
    assert ours() == []


def test_for_datagrams_the_way_is_looked_at_and_no_route_made(pair: Pair, routes: ReservedRoutes) -> None:
    assert routes.reserve(PLACE, ALICE, 0, keeps=False) == Room(1500)
    assert ours() == []
    set_mtu(pair.alice, "alice0", 1400)
    assert looked(routes) == {PLACE: Room(1400)}
    assert routes.reserve(PLACE, ALICE, 0) == Room(1400, 1392)
    assert len(ours()) == 1
    routes.release(PLACE)
    assert ours() == []
    set_mtu(pair.alice, "alice0", 1500)
    assert looked(routes) == {PLACE: Room(1500)}
    routes.release(PLACE, keeps=False)
    assert looked(routes) == {}


def test_it_follows_what_it_was_copied_from(pair: Pair, routes: ReservedRoutes) -> None:
    routes.reserve(PLACE, ALICE, 0)
    change(pair, "replace", dst="default", gateway=GATEWAY, priority=1024)
    assert looked(routes) == {}  # the room is the same
    assert shown(ours()[0])["via"] == GATEWAY
    change(pair, "add", dst="2001:db8:f::/48", gateway=BOB, priority=5, metrics={"mtu": 1400})
    assert looked(routes) == {PLACE: Room(1400, 1392)}
    assert (shown(ours()[0])["via"], shown(ours()[0])["priority"]) == (BOB, 5)
    change(pair, "del", dst="2001:db8:f::/48", priority=5)
    assert looked(routes) == {PLACE: Room(1500, 1492)}
    set_mtu(pair.alice, "alice0", 9000)
    assert looked(routes) == {PLACE: Room(9000, 8992)}
    change(pair, "del", dst="default", priority=1024)
    assert looked(routes)[PLACE].why == "the kernel keeps no route for it: Network is unreachable"
    assert ours() == []
    change(pair, "add", dst="default", gateway=BOB, priority=1024)
    assert looked(routes) == {PLACE: Room(9000, 8992)}


def test_the_interface_goes_down_and_comes_back(pair: Pair, routes: ReservedRoutes) -> None:
    routes.reserve((0, BOB), ALICE, 0)
    for state, number in (("down", 0), ("up", 1)):
        with IPRoute() as netlink:
            netlink.link("set", index=netlink.link_lookup(ifname="alice0")[0], state=state)
            if state == "up":
                netlink.addr("add", index=netlink.link_lookup(ifname="alice0")[0], address=ALICE, prefixlen=64)
        looked(routes)
        assert len(ours()) == number


def test_a_route_that_somebody_takes_away_is_put_back(routes: ReservedRoutes) -> None:
    routes.reserve(PLACE, ALICE, 0)
    with RouteSocket() as asked:
        asked.delete(asked.routes_of(PROTOCOL)[0])
    looked(routes)
    assert len(ours()) == 1


def test_where_nothing_is_kept(pair: Pair, routes: ReservedRoutes) -> None:
    assert routes.place_of(ALICE, ALICE) == "both its ends are on this host"
    assert routes.place_of(FAR, BOB) == "its source is no address of this host"
    assert routes.place_of(ALICE, "fe80::1") == "its destination is a link-local address"
    change(pair, "add", dst=f"{FAR}/128", gateway=BOB, priority=3)
    assert routes.reserve(PLACE, ALICE, 0).why == "its destination has a route of its own, which is left alone"
    change(pair, "del", dst=f"{FAR}/128", priority=3)
    set_mtu(pair.alice, "alice0", 1287)
    assert looked(routes)[PLACE].why == "the path MTU is 1287: 1280 must stay for the kernel"
    set_mtu(pair.alice, "alice0", 1288)
    assert looked(routes) == {PLACE: Room(1288, 1280)}
    nowhere = (0, "2001:db8:e::1")
    change(pair, "add", dst="2001:db8:e::/64", type="unreachable")
    assert (
        "Network is unreachable" in routes.reserve(nowhere, ALICE, 0).why
        or "No route" in routes.reserve(nowhere, ALICE, 0).why
    )


def test_several_gateways_at_once(pair: Pair, routes: ReservedRoutes) -> None:
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname="alice0")[0]
        hops = [{"gateway": one, "oif": index} for one in (BOB, GATEWAY)]
        netlink.route("add", dst="2001:db8:f::/48", family=socket.AF_INET6, multipath=hops, priority=7)
    routes.reserve(PLACE, ALICE, 0)
    [route] = ours()
    assert {one.get_attr("RTA_GATEWAY") for one in route.get_attr("RTA_MULTIPATH")} == {BOB, GATEWAY}


def test_only_routes_of_our_number_are_ever_deleted(pair: Pair, routes: ReservedRoutes) -> None:
    routes.reserve(PLACE, ALICE, 0)
    with RouteSocket() as asked:
        [route] = asked.routes_of(PROTOCOL)
        asked.delete(route)
        change(pair, "add", dst=f"{FAR}/128", gateway=BOB, priority=1024)
        with pytest.raises(ProcessLookupError):
            asked.delete(route)
        with pytest.raises(FileExistsError) as raised:
            asked.add(route)
        assert raised.value.errno == errno.EEXIST
    change(pair, "del", dst=f"{FAR}/128", priority=1024)


def test_what_a_killed_agent_left(pair: Pair) -> None:
    with pair.alice.entered():
        killed = ReservedRoutes(ROOM)
        for destination in (BOB, "2001:db8::3"):
            killed.reserve((0, destination), ALICE, 0)
        killed.close(keep=True)
        assert len(ours()) == 2
        successor = ReservedRoutes(ROOM)
        successor.reserve((0, BOB), ALICE, 0)
        successor.forget_left()
        assert [one.get_attr("RTA_DST") for one in ours()] == [BOB]
        successor.close(keep=True)
        assert remove_left([""]) == [BOB]
        assert ours() == []
        assert remove_left(["", "no-such-namespace"]) == []


# --- a path that is narrower than the link -----------------------------------------------------------


@pytest.fixture
def far(pair: Pair) -> Iterator[Namespace]:
    """Behind bob, by a link of 1400 octets."""
    with ExitStack() as stack:
        carol = stack.enter_context(Namespace("carol"))
        for host in (pair.bob, carol):  # who looks for its neighbours only once it knows its address to be its own
            host.set_sysctl("ipv6/conf/default/accept_dad", "0")
        link(pair.bob, "bob1", carol, "carol0")
        pair.bob.set_sysctl("ipv6/conf/all/forwarding", "1")
        add_address(pair.bob, "bob1", "2001:db8:f::2", 64)
        add_address(carol, "carol0", FAR, 64)
        with carol.entered(), IPRoute() as netlink:
            netlink.route("add", dst="default", gateway="2001:db8:f::2", family=socket.AF_INET6)
        change(pair, "add", dst="default", gateway=BOB, priority=1024)
        yield carol


@pytest.mark.parametrize(
    ("narrow", "mss", "segments"),
    [(1400, True, 1392), (1400, False, 1392), (1496, False, 1488), (1492, False, 1484)],
    ids=["the other end says so", "a router says so", "by less than a header", "by as much as a header"],
)
def test_the_room_is_taken_from_what_the_path_lets_through(
    pair: Pair, far: Namespace, bpf: None, narrow: int, mss: bool, segments: int
) -> None:
    """Nothing is lost for good while it is learned; then all packets are marked, and none is longer than the path."""
    flow = FlowKey.of(ALICE, 40000, FAR, 1094)
    set_mtu(pair.bob, "bob1", narrow)
    if mss:  # by the MSS in its SYN
        set_mtu(far, "carol0", narrow)
    switch_off_segmentation(pair.alice, "alice0")  # what is forwarded are packets, as from a real link
    switch_off_segmentation(pair.bob, "bob1")
    tap = Tap(far, "carol0")

    async def scenario() -> None:
        async with at_tc(pair.alice) as backend:
            await backend.handle([start(flow)])
            assert our_routes(pair.alice) == {FAR: 1492}
            with far.entered():
                server = socket.create_server((FAR, 1094), family=socket.AF_INET6)
            with pair.alice.entered():
                client = socket.socket(socket.AF_INET6)
            with server, client:
                client.bind((ALICE, 40000))
                client.connect((FAR, 1094))
                accepted, _ = server.accept()
                accepted.settimeout(10)
                with accepted:
                    await asyncio.to_thread(deliver, client, accepted, bytes(1 << 20))
                    async with asyncio.timeout(5):
                        while our_routes(pair.alice) != {FAR: segments}:  # noqa: ASYNC110  # nobody would tell
                            await asyncio.sleep(0.01)
                    await asyncio.to_thread(deliver, client, accepted, bytes(1 << 20))
                    tap.packets(flow)
                    await asyncio.to_thread(deliver, client, accepted, bytes(4 << 20))
                    packets = with_data(tap.packets(flow))
                    assert headers_of(packets) == {MARKED}
                    assert max(one.octets for one in packets) == narrow
            assert backend.counters()["packets_failed"] == 0

    try:
        run(scenario())
    finally:
        tap.close()


def test_a_learned_path_mtu_is_believed_for_a_while(pair: Pair, far: Namespace) -> None:
    set_mtu(pair.bob, "bob1", 1400)
    with pair.alice.entered():
        routes = ReservedRoutes(ROOM)
        routes.reserve(PLACE, ALICE, 0)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.connect((FAR, 9))
            sender.send(bytes(1430))
            time.sleep(0.2)
        assert looked(routes, 1) == {PLACE: Room(1400, 1392)}
        assert looked(routes, 2) == {}
        change(pair, "replace", dst="default", gateway=BOB, priority=1024, metrics={"initcwnd": 11})
        assert looked(routes, 3) == {}  # still believed
        assert looked(routes, 1 + LEARNED_SECONDS) == {PLACE: Room(1500, 1492)}
        routes.close(keep=False)
