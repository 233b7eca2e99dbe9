"""Headers at tc beside foreign filters, programs and routes: all of it stays as it was; what is ours goes with us."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from scitags_agent.bpf import clsact
from scitags_agent.bpf.attach import tcx_programs
from scitags_agent.bpf.interfaces import matching
from scitags_core import label
from scitags_core.flow import FlowKey
from scitags_core.roles import FlowMark
from tests.netns import programs
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace
from tests.netns.test_extension_header import Tap, headers_of, until
from tests.netns.test_tc_headers import MARKED, at_tc, our_routes, with_data
from tests.netns.watching import ATLAS, ETH_P_ALL, FLOW, OTHER, deliver, end, run, running, start


@pytest.fixture
def tap(pair: Pair, bpf: None) -> Any:
    one = Tap(pair.bob, "bob0")
    yield one
    one.close()


def test_between_two_foreign_filters_on_a_foreign_clsact(pair: Pair, tap: Tap) -> None:
    """Whatever their verdicts; all of it is there afterwards."""
    with pair.alice.entered(), IPRoute() as netlink, ExitStack() as stack:
        index = matching(["alice0"])[0].index
        netlink.tc("add", "clsact", index, clsact.CLSACT_HANDLE)
        for priority in (1, 30):
            foreign = stack.enter_context(programs.loaded(programs.returning(programs.TC_ACT_UNSPEC)))
            netlink.tc(
                "add-filter", "bpf", index, 1, fd=foreign, name=f"foreign{priority}",
                parent=clsact.EGRESS, prio=priority, protocol=ETH_P_ALL, direct_action=True,
            )  # fmt: skip

        def filters() -> list[str]:
            return [one.name.split("/")[0] for one in clsact.list_filters(netlink, index, clsact.EGRESS)]

        during: list[list[str]] = []

        async def scenario() -> None:
            async with at_tc(pair.alice, attach="clsact") as backend, running(pair.alice, attach="clsact") as marker:
                for one in (marker, backend):
                    await one.handle([start()])
                during.append(await asyncio.to_thread(_in(pair.alice, filters)))
                client, server = pair.connect(40000)
                deliver(client, server)
                packets = tap.packets()
                assert headers_of(packets) == {MARKED}
                assert {label.decode(one.label).tag for one in packets} == {ATLAS}
                client.close()
                server.close()

        run(scenario())
        assert during == [["foreign1", "scitags_header", "scitags_label", "foreign30"]]
        assert filters() == ["foreign1", "foreign30"]


def _in(host: Namespace, question: Any) -> Any:
    def asked() -> Any:
        with host.entered():
            return question()

    return asked


def test_a_foreign_tcx_program_is_passed_by_and_passed_on_to(pair: Pair, tap: Tap) -> None:
    """It ends the row with its verdict; ours stands before it, and it is there afterwards."""
    with pair.alice.entered(), ExitStack() as stack:
        index = matching(["alice0"])[0].index
        foreign = stack.enter_context(programs.loaded(programs.returning(programs.TC_ACT_OK)))
        stack.enter_context(programs.linked(foreign, index))
        before = tcx_programs(index)[0]

        async def scenario() -> None:
            async with at_tc(pair.alice, attach="tcx") as backend:
                assert tcx_programs(index)[0][1:] == before
                await backend.handle([start()])
                client, server = pair.connect(40000)
                deliver(client, server)
                assert headers_of(tap.packets()) == {MARKED}
                client.close()
                server.close()

        run(scenario())
        assert tcx_programs(index)[0] == before


@pytest.mark.parametrize("first", ["marker", "header"])
def test_our_own_clsact_goes_with_the_last_of_our_filters(pair: Pair, bpf: None, first: str) -> None:
    def qdiscs() -> list[str]:
        with pair.alice.entered(), IPRoute() as netlink:
            index = matching(["alice0"])[0].index
            return [one.get_attr("TCA_KIND") for one in netlink.get_qdiscs(index=index)]

    before = qdiscs()

    async def scenario() -> None:
        both = [at_tc(pair.alice, attach="clsact"), running(pair.alice, attach="clsact")]
        async with contextlib.AsyncExitStack() as stack:
            for one in both if first == "header" else reversed(both):
                await stack.enter_async_context(one)

    run(scenario())
    assert qdiscs() == before


def test_a_route_of_others_stays_as_it_is(pair: Pair, tap: Tap) -> None:
    """Then what fits is marked; when that route goes, room is kept."""
    with pair.alice.entered(), IPRoute() as netlink:
        index = netlink.link_lookup(ifname="alice0")[0]
        netlink.route("add", dst=f"{BOB}/128", oif=index, priority=512, metrics={"mtu": 1400})

    def foreign() -> list[Any]:
        with pair.alice.entered(), IPRoute() as netlink:
            return [one for one in netlink.get_routes(family=socket.AF_INET6) if one.get_attr("RTA_DST") == BOB]

    before = foreign()
    after: list[Any] = []

    async def scenario() -> None:
        async with at_tc(pair.alice) as backend:
            await backend.handle([start()])
            after.extend(await asyncio.to_thread(foreign))
            assert our_routes(pair.alice) == {}
            mark = backend.mark_of(FLOW)
            assert mark == FlowMark(
                "header: tc, what fits",
                "socket: not asked for; route: its destination has a route of its own, which is left alone",
            )
            client, server = pair.connect(40000)
            deliver(client, server)
            packets = with_data(tap.packets())
            assert max(one.octets for one in packets if not one.headers) > 1400  # cut by the device
            assert max((one.octets for one in packets if one.headers), default=0) <= 1400
            await asyncio.to_thread(_in(pair.alice, remove_foreign))
            await until(backend, "connections_with_room")
            assert our_routes(pair.alice) == {BOB: 1492}
            client.close()
            server.close()

    def remove_foreign() -> None:
        with IPRoute() as netlink:
            netlink.route("del", dst=f"{BOB}/128", oif=index, priority=512)

    run(scenario())
    shown = [[one["proto"], one.get_attr("RTA_PRIORITY"), one.get_attr("RTA_METRICS")] for one in before]
    assert [[one["proto"], one.get_attr("RTA_PRIORITY"), one.get_attr("RTA_METRICS")] for one in after] == shown


def test_flows_to_one_destination_share_its_route(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with at_tc(pair.alice) as backend:
            await backend.handle([start(), start(OTHER)])
            assert backend.counters()["routes"] == 1
            await backend.handle([end()])
            await until(backend, "connections_at_tc", 1)
            assert our_routes(pair.alice) == {BOB: 1492}
            await backend.handle([end(OTHER)])
            await until(backend, "routes", 0)
            assert our_routes(pair.alice) == {}

    run(scenario())


def test_what_a_killed_agent_left_is_taken_over_or_away(pair: Pair, tap: Tap, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with at_tc(pair.alice, tmp_path, on_stop="leave") as backend:
            await backend.handle([start(), start(FlowKey.of(ALICE, 1, "2001:db8::77", 2))])
        assert our_routes(pair.alice) == {BOB: 1492, "2001:db8::77": 1492}
        client, server = pair.connect(40000)
        deliver(client, server)
        assert headers_of(tap.packets()) == {MARKED}  # by the program that was left
        async with at_tc(pair.alice, tmp_path) as backend:
            await until(backend, "routes", 0)
            assert our_routes(pair.alice) == {}
            await backend.handle([start()])
            assert our_routes(pair.alice) == {BOB: 1492}
            deliver(client, server)
            assert headers_of(with_data(tap.packets())) >= {MARKED}
        assert our_routes(pair.alice) == {}
        client.close()
        server.close()

    run(scenario())
