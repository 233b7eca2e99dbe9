"""Which interfaces are marked on: by name, by address, by route, and in other network namespaces."""

from __future__ import annotations

import pytest

from scitags_agent.backends.marker import Marker, MarkerSettings, StaticMark
from scitags_agent.bpf.interfaces import matching
from scitags_core.errors import ConfigError
from tests.netns.conftest import Pair
from tests.netns.namespaces import Namespace, add_address, link, set_up
from tests.netns.watching import Seen, end, run, running, start, transfer


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


def test_a_namespace_that_is_not_there_is_said(pair: Pair, bpf: None, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(pair.alice, namespaces=["no-such-namespace"]) as marker:
            assert marker.counters()["interfaces"] == 1

    run(scenario())
    assert "namespace no-such-namespace cannot be looked into" in caplog.text


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="'nowhere' is no IPv6 address or network"):
        Marker(MarkerSettings(interfaces=["route:nowhere"]))
    with pytest.raises(ConfigError, match="static tags are for the agent's own"):
        Marker(MarkerSettings(namespaces=["a"], static=[StaticMark(2, 15)]))
