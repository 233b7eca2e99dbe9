"""Fireflies as the agent sends them: to whom, and what is counted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest

from scitags_agent.backends.firefly import FireflyBackend, FireflySettings
from scitags_agent.collectors import split_host_port
from scitags_agent.table import FlowTable
from scitags_core import firefly, firefly_schema
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowChange, FlowEvent, FlowKey
from scitags_core.roles import Inheritance
from scitags_core.tag import UNKNOWN
from tests.agent.conftest import Collector
from tests.agent.events import NOON, end, ongoing, seconds, start

LOCAL4 = FlowKey.of("127.0.0.1", 1094, "127.0.0.1", 43720)
LOCAL6 = FlowKey.of("::1", 1094, "::1", 43720)


def changes(*events: FlowEvent) -> list[FlowChange]:
    table = FlowTable(max_users=1000, idle=seconds(1000))
    return [change for number, event in enumerate(events) for change in table.apply(event, NOON + seconds(number))]


def counters_after(settings: FireflySettings, told: Sequence[FlowChange]) -> dict[str, int]:
    async def scenario() -> dict[str, int]:
        backend = FireflyBackend(settings)
        await backend.start(Inheritance())
        try:
            await backend.handle(told)
            return dict(backend.counters())
        finally:
            await backend.close()

    return asyncio.run(scenario())


def test_the_destination_and_every_collector_get_each_firefly(collector: Collector) -> None:
    other, destination = Collector(socket.AF_INET), Collector(socket.AF_INET)
    try:
        settings = FireflySettings(
            destination_port=destination.port,
            collectors=[f"[::1]:{collector.port}", f"127.0.0.1:{other.port}", f"localhost:{other.port}"],
        )
        told = changes(start(key=LOCAL4), ongoing(key=LOCAL4), end(key=LOCAL4))
        assert counters_after(settings, told) == {"sent": 12, "errors": 0}
        assert destination.wait(3) == collector.wait(3)
        assert len(other.wait(3)) >= 3
        for datagram in destination.datagrams:
            assert firefly_schema.problems(datagram) == []
        states = [firefly.decode(datagram).event.state.value for datagram in destination.datagrams]
        assert states == ["start", "ongoing", "end"]
    finally:
        other.close()
        destination.close()


def test_an_ipv6_flow_is_announced_over_ipv6() -> None:
    destination = Collector(socket.AF_INET6)
    try:
        settings = FireflySettings(destination_port=destination.port)
        assert counters_after(settings, changes(start(key=LOCAL6))) == {"sent": 1, "errors": 0}
        assert destination.events(1)[0].key == LOCAL6
    finally:
        destination.close()


def test_an_unknown_tag_is_announced_only_when_told_to(collector: Collector) -> None:
    target = [f"[::1]:{collector.port}"]
    quiet = FireflySettings(to_destination=False, collectors=target)
    told = changes(start(UNKNOWN))
    assert counters_after(quiet, told) == {"sent": 0, "errors": 0, "unknown_tag": 1}
    loud = FireflySettings(to_destination=False, collectors=target, announce_unknown=True)
    assert counters_after(loud, told) == {"sent": 1, "errors": 0}
    assert collector.events(1)[0].tag == UNKNOWN


def test_what_the_schema_cannot_express_is_counted() -> None:
    half = FlowKey.of("::1", 0, "::1", 43720)
    assert counters_after(FireflySettings(), changes(start(key=half)))["not_expressible"] == 1


def test_a_name_that_does_not_resolve_is_counted_and_costs_no_other(collector: Collector) -> None:
    too_long = "x" * 64 + ".invalid"  # fails before any DNS server is asked
    settings = FireflySettings(to_destination=False, collectors=[too_long, f"[::1]:{collector.port}"])
    assert counters_after(settings, changes(start())) == {"sent": 1, "errors": 0, "collector_unresolved": 1}


def test_an_unreachable_destination_is_counted() -> None:
    broadcast = FlowKey.of("127.0.0.1", 1, "255.255.255.255", 2)  # not allowed without SO_BROADCAST
    assert counters_after(FireflySettings(), changes(start(key=broadcast))) == {"sent": 0, "errors": 1}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("collector.example", ("collector.example", 10514)),
        ("collector.example:514", ("collector.example", 514)),
        ("192.0.2.1", ("192.0.2.1", 10514)),
        ("192.0.2.1:7", ("192.0.2.1", 7)),
        ("2001:db8::1", ("2001:db8::1", 10514)),
        ("[2001:db8::1]", ("2001:db8::1", 10514)),
        ("[2001:db8::1]:7", ("2001:db8::1", 7)),
    ],
)
def test_collectors_are_named_by_host_and_port(text: str, found: tuple[str, int]) -> None:
    assert split_host_port(text) == found


@pytest.mark.parametrize("text", ["", ":", ":7", "host:", "host:0", "host:65536", "host:x", "[::1", "[::1]x", "[::1]:"])
def test_a_malformed_collector_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_host_port(text)
    assert repr(text) in str(caught.value)
