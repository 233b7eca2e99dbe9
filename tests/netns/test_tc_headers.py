"""The tag in extension headers that are put in at tc: what fits, with room kept free by routes and without."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from scitags_agent.backends.extension_header import ExtensionHeader, ExtensionHeaderSettings
from scitags_agent.reserved_routes import PROTOCOL
from scitags_agent.rtnetlink import RouteSocket
from scitags_core.roles import Inheritance
from tests.netns.conftest import BOB, Pair
from tests.netns.namespaces import Namespace, set_mtu, switch_off_segmentation
from tests.netns.test_extension_header import (
    DESTINATION,
    FIXED,
    HOP_BY_HOP,
    Packet,
    Tap,
    headers_of,
    until,
)
from tests.netns.watching import ATLAS, CMS, FLOW, deliver, end, run, start

TCP_WITH_TIME_STAMPS = 32
MARKED = ((DESTINATION, ATLAS),)


@contextlib.asynccontextmanager
async def at_tc(host: Namespace, directory: Path | None = None, **settings: Any) -> AsyncIterator[ExtensionHeader]:
    """The backend on the host, its thread too."""
    backend = ExtensionHeader(ExtensionHeaderSettings(linger=0, rescan=0.1, **({"mode": "tc"} | settings)))
    with host.entered():
        await backend.start(Inheritance(directory=directory))
    try:
        yield backend
    finally:
        with host.entered():
            await backend.close()


@pytest.fixture
def tap(pair: Pair, bpf: None) -> Any:
    """Behind the program: what arrives."""
    one = Tap(pair.bob, "bob0")
    yield one
    one.close()


def our_routes(host: Namespace) -> dict[str, int]:
    """Destinations and MTUs."""
    with host.entered(), RouteSocket() as asked:
        return {route.destination: route.mtu for route in asked.routes_of(PROTOCOL)}


def with_data(packets: list[Packet]) -> list[Packet]:
    return [one for one in packets if one.payload]


@pytest.mark.parametrize(
    ("header", "kinds"),
    [("destination-options", (DESTINATION,)), ("hop-by-hop", (HOP_BY_HOP,)), ("both", (HOP_BY_HOP, DESTINATION))],
)
def test_every_packet_bears_it_from_the_syn_on_until_the_end(
    pair: Pair, tap: Tap, header: str, kinds: tuple[int, ...]
) -> None:
    async def scenario() -> None:
        async with at_tc(pair.alice, header=header) as backend:
            await backend.handle([start()])
            assert our_routes(pair.alice) == {BOB: 1500 - 8 * len(kinds)}
            client, server = pair.connect(40000)
            other, other_server = pair.connect(40001)
            deliver(client, server, bytes(8 << 20))
            packets = tap.packets()
            assert headers_of(packets) == {tuple((kind, ATLAS) for kind in kinds)}
            await backend.handle([start(mark=CMS)])
            deliver(client, server)
            deliver(other, other_server)
            assert headers_of(tap.packets()) == {tuple((kind, CMS) for kind in kinds)}
            await backend.handle([end()])
            await until(backend, "connections_at_tc", 0)
            deliver(client, server)
            assert headers_of(tap.packets()) == {()}
            assert our_routes(pair.alice) == {}
            assert backend.counters()["packets_no_room"] == 0
            for one in (client, server, other, other_server):
                one.close()

    run(scenario())


@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("segmentation", [True, False], ids=["TSO", "no TSO"])
def test_no_packet_outgrows_the_mtu_and_none_is_cut_in_two(pair: Pair, bpf: None, mtu: int, segmentation: bool) -> None:
    for host, interface in ((pair.alice, "alice0"), (pair.bob, "bob0")):
        set_mtu(host, interface, mtu)
    if not segmentation:
        switch_off_segmentation(pair.alice, "alice0")
    tap = Tap(pair.bob, "bob0")
    octets = 16 << 20
    segment = mtu - FIXED - TCP_WITH_TIME_STAMPS

    async def scenario() -> None:
        async with at_tc(pair.alice) as backend:
            await backend.handle([start()])
            client, server = pair.connect(40000)
            in_part = []
            for _ in range(8):
                deliver(client, server, bytes(octets))
                packets = tap.packets()
                assert headers_of(packets) == {MARKED}
                sizes = [one.payload for one in packets if one.payload]
                assert sum(sizes) >= octets
                if segmentation:
                    assert max(sizes) > mtu
                else:
                    assert max(one.octets for one in packets) <= mtu
                    in_part.append(sum(size != segment - 8 for size in sizes) / len(sizes))
                if segmentation or in_part[-1] <= 0.05:
                    break
            # A busy machine makes some that are not full; what is cut in two is so in each transfer.
            assert min(in_part, default=0) <= 0.05
            client.close()
            server.close()

    try:
        run(scenario())
    finally:
        tap.close()


def test_an_open_connection_gives_the_room_within_a_moment(pair: Pair, tap: Tap) -> None:
    async def scenario() -> None:
        async with at_tc(pair.alice) as backend:
            client, server = pair.connect(40000)
            deliver(client, server)
            await backend.handle([start()])
            deliver(client, server)  # what is in its queue already may be as long as before
            tap.packets()
            deliver(client, server, bytes(8 << 20))
            assert headers_of(tap.packets()) == {MARKED}
            client.close()
            server.close()

    run(scenario())


@pytest.mark.parametrize("segmentation", [True, False], ids=["TSO", "no TSO"])
def test_without_a_route_what_has_no_room_goes_as_it_is(pair: Pair, tap: Tap, segmentation: bool) -> None:
    if not segmentation:
        switch_off_segmentation(pair.alice, "alice0")

    async def scenario() -> None:
        async with at_tc(pair.alice, mode="tc-unreserved") as backend:
            await backend.handle([start()])
            client, server = pair.connect(40000)
            assert headers_of(tap.packets()) == {MARKED}  # the SYN and the ACK
            deliver(client, server)
            for size in (1, 700, 1412, 1413, 1428):
                deliver(client, server, bytes(size))
                await asyncio.sleep(0.05)
            sizes = {one.payload: one.headers for one in with_data(tap.packets()) if one.payload <= 1428}
            assert [sizes[size] for size in (1, 700)] == [MARKED, MARKED]
            assert sizes[1428] == ()
            counters = backend.counters()
            assert counters["packets_no_room"] > 0
            assert counters["packets_failed"] == 0
            assert our_routes(pair.alice) == {}
            mark = backend.mark_of(FLOW)
            assert mark is not None
            assert mark.by == "header: tc, what fits"
            assert "not asked for" in mark.why
            client.close()
            server.close()

    run(scenario())
