"""The enricher `sock_ops` on real connections: what an end is told of the octets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from scitags_agent.enrichers.sock_ops import SockOpsEnricher, SockOpsEnricherSettings
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.strict import convert
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace
from tests.netns.watching import ATLAS, MEGABYTE, deliver, run, transfer

FLOW = FlowKey.of(ALICE, 40000, BOB, 1094)
END = FlowEvent(state=FlowState.END, key=FLOW, tag=ATLAS)


@asynccontextmanager
async def enriching(host: Namespace, **settings: Any) -> AsyncIterator[SockOpsEnricher]:
    enricher = SockOpsEnricher(convert(settings, SockOpsEnricherSettings, "test"))
    with host.entered():
        await enricher.start()
    try:
        yield enricher
    finally:
        await enricher.close()


def of(key: FlowKey, event: FlowEvent = END) -> FlowEvent:
    return msgspec.structs.replace(event, key=key)


@pytest.mark.parametrize("turns", [0, 1], ids=["before the loop turns", "after"])
def test_an_end_after_the_close_is_told_every_octet(pair: Pair, bpf: None, turns: int) -> None:
    async def scenario() -> None:
        async with enriching(pair.alice) as enricher:
            transfer(pair, 40000)
            await asyncio.sleep(0.02 * turns)
            told = enricher.enrich(END)
            assert told.usage == Usage(received=0, sent=len(MEGABYTE))
            info = told.extra["skOps"]["tcpInfo"]
            assert (info["bytesAcked"], info["bytesRecv"], info["state"]) == (len(MEGABYTE), 0, "FIN_WAIT2")
            assert 0 < info["minRtt"] <= info["rtt"]
            # What one was given no other is.
            assert enricher.enrich(END) is END
            assert enricher.counters() == {
                "from_close": 1, "from_look_up": 0, "no_connection": 1, "lost": 0, "closed": 0,
            }  # fmt: skip

    run(scenario())


def test_octets_are_those_that_the_source_of_the_flow_counts(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with enriching(pair.alice) as alice, enriching(pair.bob) as bob:
            client, server = pair.connect(40000)
            deliver(client, server, bytes(1000))
            deliver(server, client, bytes(70))
            client.close()
            server.close()
            assert alice.enrich(of(FLOW.reversed())).usage == Usage(received=1000, sent=70)
            assert bob.enrich(END).usage == Usage(received=70, sent=1000)

    run(scenario())


def test_an_end_before_the_close_is_told_what_has_gone_so_far_and_the_next_the_rest(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with enriching(pair.alice) as enricher:
            client, server = pair.connect(40000)
            for octets in (1000, 200):
                deliver(client, server, bytes(octets))
                told = enricher.enrich(END)
                assert told.usage == Usage(received=0, sent=octets)
            assert told.extra["skOps"]["tcpInfo"]["bytesAcked"] == 1200
            assert told.extra["skOps"]["tcpInfo"]["state"] == "ESTABLISHED"
            deliver(server, client, bytes(34))
            client.close()
            server.close()
            assert enricher.enrich(END).usage == Usage(received=34, sent=0)
            counters = enricher.counters()
            assert (counters["from_look_up"], counters["from_close"]) == (2, 1)

    run(scenario())


def test_what_the_reporter_said_stays(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with enriching(pair.alice) as enricher:
            transfer(pair, 40000)
            for state in (FlowState.START, FlowState.ONGOING):
                event = msgspec.structs.replace(END, state=state)
                assert enricher.enrich(event) is event
            udp = of(FlowKey.of(ALICE, 40000, BOB, 1094, "udp"))
            assert enricher.enrich(udp) is udp
            own = msgspec.structs.replace(END, usage=Usage(sent=5), extra={"skOps": {}})
            assert enricher.enrich(own) is own
            told = enricher.enrich(msgspec.structs.replace(END, usage=Usage(sent=5), extra={"theirs": 1}))
            assert told.usage == Usage(sent=5)
            assert set(told.extra) == {"theirs", "skOps"}

    run(scenario())


def test_what_has_closed_is_kept_for_a_while_and_not_beyond_a_bound(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with enriching(pair.alice, max_closed=3) as few, enriching(pair.alice, keep_seconds=0.2) as briefly:
            for port in range(40000, 40005):
                await asyncio.to_thread(transfer, pair, port, b"x")
            assert briefly.enrich(of(FlowKey.of(ALICE, 40004, BOB, 1094))).usage == Usage(received=0, sent=1)
            told = [few.enrich(of(FlowKey.of(ALICE, port, BOB, 1094))).usage for port in range(40000, 40005)]
            assert told == [None, None, *[Usage(received=0, sent=1)] * 3]
            await asyncio.sleep(0.25)
            assert briefly.enrich(END).usage is None
            await asyncio.to_thread(transfer, pair, 40005, b"x")
            assert briefly.enrich(END).usage is None
            assert briefly.counters()["closed"] == 1

    run(scenario())


def test_an_end_is_told_however_much_has_closed_at_once(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with enriching(pair.alice) as enricher:
            for port in range(20000, 20600):  # the loop does not run meanwhile
                transfer(pair, port, b"x")
            assert enricher.enrich(of(FlowKey.of(ALICE, 20599, BOB, 1094))).usage == Usage(received=0, sent=1)
            assert enricher.counters()["closed"] == 599

    run(scenario())


def test_connections_of_other_ports_wake_nobody(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with enriching(pair.alice, remote_ports=["2000-2999"]) as enricher:
            transfer(pair, 40000)
            assert enricher.enrich(END) is END
            assert not any(enricher.counters()[name] for name in ("from_close", "closed", "lost"))

    run(scenario())


def test_what_the_buffer_could_not_hold_is_counted_and_said_once(
    pair: Pair, bpf: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with enriching(pair.alice, buffer=4096) as enricher:
            for first in (41000, 41100):
                for port in range(first, first + 40):
                    transfer(pair, port, b"x")
                enricher.enrich(END)
            assert enricher.counters()["lost"] == 2 * 10
            assert enricher.counters()["closed"] == 2 * 30

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert [one.message for one in caplog.records] == [
        "10 reports of connections were lost: buffer 4096 is full (said once, counted from here)"
    ]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"local_ports": [0]}, "port 0"),
        ({"remote_ports": ["5-2"]}, "'5-2'"),
        ({"buffer": 12345}, "12345"),
        ({"keep_seconds": 0}, "keep_seconds"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        SockOpsEnricher(convert(settings, SockOpsEnricherSettings, "test"))
