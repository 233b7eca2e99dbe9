"""Which interfaces are marked on: by name, by address, by route, and in other network namespaces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from scitags_agent.backends.marker import Marker, MarkerSettings, StaticMark
from scitags_agent.bpf import namespaces
from scitags_agent.bpf.interfaces import matching
from scitags_agent.rtnetlink import Link, RouteSocket
from scitags_core.errors import ConfigError
from tests.netns.conftest import Pair
from tests.netns.namespaces import Namespace, add_address, link, set_up
from tests.netns.watching import FLOW, OTHER, Seen, end, run, running, start, transfer


def names(host: Namespace, *patterns: str) -> set[str]:
    with host.entered():
        return {one.name for one in matching(patterns)}


def test_by_address_and_by_route(pair: Pair) -> None:
    link(pair.alice, "plain0", pair.bob, "plain1")
    set_up(pair.bob, "plain1")
    assert names(pair.alice, "*") == {"alice0", "plain0"}
    assert names(pair.alice, "global-ipv6") == {"alice0"}
    assert names(pair.alice, "route:2001:db8::7") == {"alice0"}
    assert names(pair.alice, "route:2001:db8:7::/48") == set()
    add_address(pair.alice, "plain0", "2001:db8:7::1", 64)
    assert names(pair.alice, "route:2001:db8:7::/64") == {"plain0"}
    assert names(pair.alice, "route:2001:db8:7::9", "alice*") == {"alice0", "plain0"}
    assert names(pair.alice, "global-ipv6") == {"alice0", "plain0"}


def test_packets_of_another_namespace_are_marked(pair: Pair, seen: Seen, bpf: None) -> None:
    async def scenario(home: Namespace) -> None:
        async with running(home, interfaces=["alice*"], namespaces=[pair.alice.path]) as marker:
            assert marker.counters()["interfaces"] == 1
            await marker.handle([start()])
            transfer(pair, 40000)
            labels = seen.labels()
            assert len(labels[40000, 1094]) == 1
            assert 0 not in labels[40000, 1094]
            await marker.handle([end()])

    with Namespace("agents") as home:
        run(scenario(home))


def test_the_marks_of_a_namespace_go_with_it(pair: Pair, bpf: None) -> None:
    """Whoever tells the marker of their ends may see later that it is no more."""
    flow = FLOW.within(Path(pair.alice.path).stat().st_ino)

    async def scenario(home: Namespace) -> None:
        async with running(home, interfaces=["alice*"], namespaces=[pair.alice.path], rescan=0.05, linger=0) as marker:
            await marker.handle([start(flow), start(OTHER)])
            assert marker.counters()["connections"] == 3  # of which one may be anywhere
            pair.alice.close()
            while marker.counters()["connections"] != 1:  # noqa: ASYNC110  # nobody would tell
                await asyncio.sleep(0.01)
            await marker.handle([end(flow)])
            assert marker.counters()["connections"] == 1
            await marker.handle([end(OTHER)])
            assert marker.counters()["connections"] == 0

    with Namespace("agents") as home:
        run(scenario(home))


def test_a_namespace_that_cannot_be_entered_is_said(
    pair: Pair, bpf: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def denied(path: str) -> Iterator[None]:
        if path:
            raise PermissionError(1, "not for you")
        yield

    async def scenario() -> None:
        async with running(pair.alice, namespaces=[pair.bob.path, "no-such-namespace"]) as marker:
            assert marker.counters()["interfaces"] == 1

    monkeypatch.setattr(namespaces, "entered", denied)
    run(scenario())
    assert f"namespace {pair.bob.path} cannot be looked into, and is tried again: [Errno 1] not for you" in caplog.text


def test_ports_of_a_bond_are_left_out_unless_named(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every kernel has bonds, so that what it says of them is told here in its place."""
    link(pair.alice, "port0", pair.bob, "port1")
    with pair.alice.entered(), RouteSocket() as asked:
        links = asked.links()
    known = {one.kind for one in links if one.index != 1}
    assert known >= {"veth"}
    bond, port = (matching_index(pair.alice, name) for name in ("alice0", "port0"))
    for kind, expected in (("bond", {"alice0"}), ("team", {"alice0"}), ("bridge", {"alice0", "port0"})):
        told = [Link(bond, 0, kind), Link(port, bond, "veth")]
        monkeypatch.setattr(RouteSocket, "links", lambda _, told=told: told)
        assert names(pair.alice, "*") == expected
        assert names(pair.alice, "*", "port0") == {"alice0", "port0"}
        assert names(pair.alice, "port*") == {"port0"}  # the bond is not marked on


def matching_index(host: Namespace, name: str) -> int:
    with host.entered():
        return matching([name])[0].index


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="'nowhere' is no IPv6 address or network"):
        Marker(MarkerSettings(interfaces=["route:nowhere"]))
    with pytest.raises(ConfigError, match="static tags are for the agent's own"):
        Marker(MarkerSettings(namespaces=["a"], static=[StaticMark(2, 15)]))
