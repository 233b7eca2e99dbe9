"""The enricher sock_diag on real connections: what an event says is what the connection did."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from scitags_agent import tcp_info
from scitags_agent.client import AgentClient
from scitags_agent.connections import Lookup
from scitags_agent.enrichers import sock_diag
from scitags_agent.enrichers.sock_diag import SockDiagEnricher, SockDiagSettings
from scitags_agent.host import Host
from scitags_agent.inet_diag import INFO, Connection, SockDiagError
from scitags_agent.netlink_object import SHAPES, Shape
from scitags_agent.plugin import provide_enrichers
from scitags_core import firefly
from scitags_core.flow import FlowKey, Usage
from tests.agent.conftest import Agent, Collector, firefly_backend, wait_for
from tests.agent.events import end, ongoing, start
from tests.agent.sockets import connect, listener, udp_pair

LIMIT_SECONDS = 20


def run(test: Callable[[SockDiagEnricher], Awaitable[None]], **settings: Any) -> None:
    """A test with a started enricher, in a loop of its own."""

    async def live() -> None:
        enricher = SockDiagEnricher(SockDiagSettings(**settings))
        try:
            await enricher.start()
            await test(enricher)
        finally:
            await enricher.close()

    asyncio.run(asyncio.wait_for(live(), LIMIT_SECONDS))


async def departed(enricher: SockDiagEnricher, key: FlowKey) -> None:
    """Until the kernel has told that the socket of a flow is gone."""

    await until(lambda: enricher._flows[key].last[:1] == bytes([tcp_info.CLOSE]))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not come within 5 s")


def test_an_end_after_the_socket_is_gone_says_all_that_moved() -> None:
    async def test(enricher: SockDiagEnricher) -> None:
        with listener() as listening:
            pair = connect(listening)
            began = enricher.enrich(start(key=pair.key))
            assert began.usage == Usage(sent=0, received=0)
            pair.transfer(123_456)
            assert enricher.enrich(ongoing(key=pair.key)).usage == Usage(sent=123_456, received=0)
            pair.transfer(1)
            algorithm = began.extra["netlink"]["cong"]
            pair.close()
        await departed(enricher, pair.key)
        ended = enricher.enrich(end(key=pair.key))
        assert ended.usage == Usage(sent=123_457, received=0)
        assert ended.extra["netlink"]["tcpInfo"]["bytesSent"] == 123_457
        assert ended.extra["netlink"]["cong"] == algorithm
        assert enricher.counters() == {
            "found": 2, "no_socket": 0, "from_memory": 1, "forgotten": 0, "flows": 0, "departures_lost": 0
        }  # fmt: skip

    run(test)


def test_usage_is_as_the_source_of_the_flow_counts() -> None:
    async def test(enricher: SockDiagEnricher) -> None:
        with listener() as listening:
            pair = connect(listening)
            pair.transfer(5000)
            assert enricher.enrich(start(key=pair.key)).usage == Usage(sent=5000, received=0)
            assert enricher.enrich(start(key=pair.server_key)).usage == Usage(sent=0, received=5000)
            pair.close()

    run(test)


def test_of_one_socket_at_the_destination_the_usage_is_turned_round(monkeypatch: pytest.MonkeyPatch) -> None:
    find = Lookup.find

    async def test(enricher: SockDiagEnricher) -> None:
        with listener() as listening:
            pair = connect(listening)
            # As if the client were another host's.
            monkeypatch.setattr(
                Lookup, "find", lambda self, key, **more: None if key == pair.key else find(self, key, **more)
            )
            pair.transfer(5000)
            assert enricher.enrich(start(key=pair.key)).usage == Usage(sent=5000, received=0)
            pair.close()

    run(test)


def test_transfers_that_follow_each_other_on_a_connection_get_their_own_octets() -> None:
    async def test(enricher: SockDiagEnricher) -> None:
        with listener() as listening:
            pair = connect(listening)
            pair.transfer(10)  # before we heard of the first: its own
            for octets in (1000, 2000):
                enricher.enrich(start(key=pair.key))
                pair.transfer(octets)
                told = enricher.enrich(end(key=pair.key)).usage
                assert told == Usage(sent=octets + (10 if octets == 1000 else 0), received=0)
            enricher.enrich(start(key=pair.key))
            pair.transfer(5)
            pair.close()
            await departed(enricher, pair.key)
            assert enricher.enrich(end(key=pair.key)).usage == Usage(sent=5, received=0)

    run(test)


def test_no_octet_is_given_to_two_that_overlap() -> None:
    async def test(enricher: SockDiagEnricher) -> None:
        with listener() as listening:
            pair = connect(listening)
            for _ in range(4):
                enricher.enrich(start(key=pair.key))
            for octets in (70, 8):
                pair.transfer(octets)
                assert enricher.enrich(end(key=pair.key)).usage == Usage(sent=octets, received=0)
            pair.transfer(9)
            pair.close()
            await departed(enricher, pair.key)
            for octets in (9, 0):
                assert enricher.enrich(end(key=pair.key)).usage == Usage(sent=octets, received=0)
            assert enricher.enrich(end(key=pair.key)).usage is None

    run(test)


def test_a_start_before_the_connection_is_enough() -> None:
    async def test(enricher: SockDiagEnricher) -> None:
        with listener() as listening, listener() as other:
            free = other.getsockname()[1]
            other.close()
            key = FlowKey.of("::1", free, "::1", listening.getsockname()[1])
            assert enricher.enrich(start(key=key)) == start(key=key)
            pair = connect(listening, source=("::1", free))
            assert pair.key == key
            pair.transfer(321)
            pair.close()
            await departed(enricher, key)
            assert enricher.enrich(end(key=key)).usage == Usage(sent=321, received=0)

    run(test)


def test_what_the_reporter_said_stays_and_strangers_stay_as_they_are() -> None:
    async def test(enricher: SockDiagEnricher) -> None:
        stranger = start()
        assert enricher.enrich(stranger) is stranger
        assert enricher.enrich(end()) == end()
        halfway = start(key=FlowKey.of("::1", 0, "::1", 7))
        assert enricher.enrich(halfway) is halfway
        with listener() as listening:
            pair = connect(listening)
            said = msgspec.structs.replace(
                start(key=pair.key), usage=Usage(sent=1), extra={"netlink": {"theirs": 1}, "more": {}}
            )
            assert enricher.enrich(said) is said
            more = enricher.enrich(msgspec.structs.replace(said, extra={"more": {}})).extra
            assert more.keys() == {"more", "netlink"}
            pair.close()

    run(test)


def test_where_the_kernel_tells_of_no_departures_the_last_look_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(host: Host, heard: Callable[[Connection], None]) -> None:
        raise SockDiagError("not here")

    monkeypatch.setattr(sock_diag, "HostDepartures", none)

    async def test(enricher: SockDiagEnricher) -> None:
        with listener() as listening:
            pair = connect(listening)
            enricher.enrich(start(key=pair.key))
            pair.transfer(40)
            enricher.enrich(ongoing(key=pair.key))
            pair.transfer(2)
            pair.close()
            with Lookup() as lookup:
                await until(lambda: lookup.find(pair.server_key) is None)
            ended = enricher.enrich(end(key=pair.key))
            assert ended.usage == Usage(sent=40, received=0)
            assert "cong" in ended.extra["netlink"]

    run(test)


def test_no_more_flows_are_remembered_than_allowed() -> None:
    async def test(enricher: SockDiagEnricher) -> None:
        for port in range(1, 101):
            enricher.enrich(start(key=FlowKey.of("2001:db8::1", port, "2001:db8::2", 7)))
        assert enricher.counters()["flows"] == 10
        assert enricher.counters()["forgotten"] == 90

    run(test, max_flows=10)


def test_udp_has_memory_and_no_octets() -> None:
    async def test(enricher: SockDiagEnricher) -> None:
        pair = udp_pair()
        told = enricher.enrich(start(key=pair.key))
        assert told.usage is None
        assert told.extra["netlink"].keys() == {"skBuff", "tos", "memInfo", "skMemInfo"}
        pair.close()

    run(test, shape="full")


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: Shape) -> None:
    """Each says what the owner of the socket would be told, by the names of the daemon that it comes from."""
    with listener("127.0.0.1") as listening, Lookup() as lookup:
        pair = connect(listening)
        pair.transfer(4321)
        found = lookup.find(pair.key)
        pair.close()
    assert found is not None
    info = tcp_info.decode(found.attributes()[INFO])
    told = json.loads(msgspec.json.encode(SHAPES[shape](found, found.attributes())))
    if shape == "flowd":
        inner = told["tcp_info"]
        assert told.keys() == {
            "src", "dst", "src_port", "dst_port", "inode", "iface_idx", "retrans", "meminfo", "cong_algo", "tcp_info"
        }  # fmt: skip
        assert FlowKey.of(told["src"], told["src_port"], told["dst"], told["dst_port"]) == pair.key
        assert (inner["state"], inner["opts"][:2], inner["snd_ssthresh"]) == ("established", ["ts", "sack"], None)
        assert inner["rtt"] == info["rtt"] / 1000
        assert inner["bytes_sent"] == 4321
    else:
        inner = told["tcpInfo"]
        assert inner["bytesSent"] == 4321
        assert inner["rtt"] == info["rtt"]
        assert told["cong"]["algorithm"]
    if shape == "lean":
        assert told.keys() == {"tcpInfo", "cong"}
        assert len(inner) == 11
    if shape == "full":
        socket = told["skBuff"]
        assert socket["id"]["srcIP"] == [int.from_bytes(bytes([127, 0, 0, 1]), "little"), 0, 0, 0]
        assert socket["id"]["srcPort"] == int.from_bytes(pair.key.src_port.to_bytes(2), "little")
        assert socket["iNode"] == found.inode
        assert len(inner) == len(info)
        assert told["skMemInfo"].keys() >= {"rMemAlloc", "drops"}


def test_a_lean_firefly_fits_where_any_firefly_does(make_agent: Callable[..., Agent], collector: Collector) -> None:
    """The whole way: an agent process, told through its socket, and what its fireflies say."""
    agent = make_agent(firefly_backend(collector) + '[[enricher]]\nkind = "sock_diag"\n')
    with listener() as listening:
        pair = connect(listening)
        with AgentClient(agent.socket) as client:
            client.announce([start(key=pair.key)], timeout=5)
            pair.transfer(1 << 16)
            client.announce([end(key=pair.key)], timeout=5)
        pair.close()
        events = collector.events(2)
    assert all("netlink" in event.extra for event in events)
    assert events[1].usage == Usage(sent=1 << 16, received=0)
    assert all(len(datagram) <= firefly.MAX_UNFRAGMENTED for datagram in collector.datagrams)
    wait_for(lambda: agent.status()["enrichers"]["sock_diag"]["found"] == 2)
    assert agent.stop() == 0


def test_the_kind_is_offered() -> None:
    assert "sock_diag" in [kind.kind for kind in provide_enrichers()]
