"""The sources `sock_ops` and `iperf3` on real connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from scitags_agent.bpf.connections_layout import PortFilter
from scitags_agent.rules import Rule
from scitags_agent.sources import sock_ops
from scitags_agent.sources.sock_ops import Iperf3Settings, SockOps, SockOpsSettings
from scitags_agent.watch import port_filters
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.strict import convert
from tests import sink as sinks
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace
from tests.netns.watching import ATLAS, CMS, MEGABYTE, run, transfer

RULES = [
    {"experiment": 3, "activity": 14, "local_ports": ["40100-40199"]},
    {"ignore": True, "local_ports": [40001]},
    {"experiment": 2, "activity": 15, "remote_ports": [1094], "remote_networks": ["2001:db8::/64"]},
]
FLOW = FlowKey.of(ALICE, 40000, BOB, 1094)


class Sink(sinks.Sink):
    """One that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def accept_many(self, events: Sequence[FlowEvent], position: bytes = b"") -> None:
        super().accept_many(events, position)
        self._more.set()

    def refuse(self, reason: str) -> None:
        super().refuse(reason)
        self._more.set()

    async def more(self) -> None:
        """Return when something has come since the last call."""
        async with asyncio.timeout(10):
            await self._more.wait()
        self._more.clear()

    async def wait(self, count: int) -> list[FlowEvent]:
        """The events, as many as are expected; no more come."""
        while len(self.events) < count:
            await self.more()
        await asyncio.sleep(0.02)
        assert len(self.events) == count
        return self.events


@asynccontextmanager
async def started(source: SockOps, host: Namespace) -> AsyncIterator[Sink]:
    """The source, at work in a namespace."""
    inlet = Sink()
    with host.entered():
        task = asyncio.create_task(source.run(inlet))
        await asyncio.sleep(0)
    assert not task.done(), task.exception()
    try:
        yield inlet
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def by_rules(*rules: dict[str, Any], **more: Any) -> SockOps:
    return sock_ops.create_sock_ops(convert({"rule": list(rules), **more}, SockOpsSettings, "test"))


def by_turns(**settings: Any) -> SockOps:
    return sock_ops.create_iperf3(convert(settings, Iperf3Settings, "test"))


def test_a_connection_begins_with_its_first_packet_and_ends_with_its_octets(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        before = datetime.now(UTC)
        async with started(by_rules(*RULES), pair.alice) as sink:
            for port in (40000, 40001, 40002):
                await asyncio.to_thread(transfer, pair, port)
            events = await sink.wait(4)
        after = datetime.now(UTC)
        for flow, (start, end) in zip(
            (FLOW, FlowKey.of(ALICE, 40002, BOB, 1094)), (events[:2], events[2:]), strict=True
        ):
            assert (start.state, end.state) == (FlowState.START, FlowState.END)
            assert (start.key, end.key, start.tag, end.tag) == (flow, flow, ATLAS, ATLAS)
            assert start.transfer_id == end.transfer_id != ""
            assert start.start_time is not None
            assert end.end_time is not None
            assert before <= start.start_time < end.end_time <= after
            assert (start.usage, end.usage) == (None, Usage(received=0, sent=len(MEGABYTE)))
            assert end.extra["skOps"]["tcpInfo"]["bytesAcked"] == len(MEGABYTE)
        assert not sink.refused

    run(scenario())


def test_both_sides_and_what_fails(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with (
            started(by_rules(*RULES), pair.alice) as alice,
            started(by_rules({"experiment": 2, "activity": 15, "local_ports": [1094]}), pair.bob) as bob,
            started(by_rules(*RULES, from_first_packet=False), pair.alice) as established,
        ):
            await asyncio.to_thread(transfer, pair, 40000)
            events = await bob.wait(2)
            assert [one.key for one in events] == [FLOW.reversed()] * 2
            assert events[1].usage == Usage(received=len(MEGABYTE), sent=0)
            with pytest.raises(ConnectionRefusedError), pair.alice.entered():
                socket.create_connection((BOB, 1094), source_address=(ALICE, 40003))
            assert [one.state for one in await alice.wait(4)] == [FlowState.START, FlowState.END] * 2
            assert [one.key for one in await established.wait(2)] == [FLOW] * 2

    run(scenario())


def test_an_agent_that_comes_later_ends_what_an_earlier_one_saw_begin(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with started(by_rules(*RULES), pair.alice) as sink:
            client, server = await asyncio.to_thread(pair.connect, 40000)
            [start] = await sink.wait(1)
        async with started(by_rules(*RULES), pair.alice) as sink:
            client.close()
            server.close()
            [end] = await sink.wait(1)
        assert (end.state, end.key, end.tag) == (FlowState.END, FLOW, ATLAS)
        assert end.transfer_id == start.transfer_id

    run(scenario())


def test_the_owner_of_a_socket_is_asked_for_when_a_rule_wants_to_know(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        ours = {"experiment": 2, "activity": 15, "user": 0}
        others = {"experiment": 3, "activity": 14, "user": 12345}
        async with started(by_rules(others, ours), pair.alice) as sink:
            client, server = await asyncio.to_thread(pair.connect, 40000)
            [start] = await sink.wait(1)
            client.close()
            server.close()
            [_, end] = await sink.wait(2)
        assert start.tag == end.tag == ATLAS

    run(scenario())


def test_what_the_buffer_cannot_hold_is_refused_by_name(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with started(by_rules(*RULES, buffer=4096), pair.alice) as sink:
            for port in range(41000, 41020):  # the loop does not run meanwhile
                transfer(pair, port, b"x")
            while not sink.refused:
                await sink.more()
            [reason] = sink.refused
        assert reason == "10 reports of connections were lost: buffer 4096 is full"
        assert len(sink.events) == 30

    run(scenario())


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_tags_take_turns(pair: Pair, bpf: None, order: str) -> None:
    async def scenario() -> None:
        tags = [{"experiment": 2, "activity": 15}, {"experiment": 3, "activity": 14}]
        async with started(by_turns(tags=tags, order=order, ports=["1090-1099"]), pair.alice) as sink:
            for port in range(42000, 42024):
                await asyncio.to_thread(transfer, pair, port, b"x")
            events = await sink.wait(48)
        given = [one.tag for one in events if one.state is FlowState.START]
        assert [one.tag for one in events if one.state is FlowState.END] == given
        if order == "sequential":
            assert given == [ATLAS, CMS] * 12
        else:
            assert set(given) == {ATLAS, CMS}

    run(scenario())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {42000, 42001}),  # 1094, whichever end has it
        ({"local_ports": [42001]}, {42001}),
        ({"remote_ports": [1094], "local_ports": ["1-42000"]}, {42000}),
        ({"remote_ports": [1095]}, set()),
    ],
)
def test_ports_of_measurements(pair: Pair, bpf: None, settings: dict[str, Any], expected: set[int]) -> None:
    async def scenario() -> None:
        source = by_turns(tags=[{"experiment": 2, "activity": 15}], ports=[1094], **settings)
        async with started(source, pair.alice) as sink:
            for port in (42000, 42001):
                await asyncio.to_thread(transfer, pair, port, b"x")
            assert {one.key.src_port for one in await sink.wait(2 * len(expected))} == expected

    run(scenario())


def test_only_ports_that_a_rule_asks_for_leave_the_kernel() -> None:
    rules = [
        Rule(experiment=2, activity=15, local_ports=[1094, "2000-2999"], remote_ports=["1-99"]),
        Rule(experiment=2, activity=15, protocol="udp", local_ports=[53]),
        Rule(ignore=True, local_ports=[22]),
        Rule(experiment=2, activity=15, remote_ports=[443]),
    ]
    assert port_filters(rules) == [
        PortFilter((1094, 1094), (1, 99)),
        PortFilter((2000, 2999), (1, 99)),
        PortFilter(remote=(443, 443)),
    ]
    assert port_filters([Rule(experiment=2, activity=15)]) == [PortFilter()]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (by_rules, "no rule"),
        (lambda: by_rules(RULES[0], buffer=5000), "buffer 5000 is no power of two"),
        (lambda: by_rules(RULES[0], buffer=2048), "buffer"),
        (lambda: by_rules({"experiment": 2}), "rule 1: needs experiment and activity"),
        (lambda: by_rules({"experiment": 2, "activity": 15, "local_ports": ["9-3"]}), "'9-3'"),
        (lambda: by_rules({**RULES[0], "program": "xrootd"}), "program: .* sock_diag"),
        (lambda: by_turns(tags=[]), "tags is empty"),
        (lambda: by_turns(tags=[{"experiment": 2000, "activity": 1}]), "2000"),
        (lambda: by_turns(tags=[{"experiment": 2, "activity": 15}], ports=[70000]), "70000"),
        (lambda: by_turns(tags=[{"experiment": 2, "activity": 15}], order="backwards"), "backwards"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(make: Callable[[], SockOps], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make()


@pytest.mark.parametrize("path", ["no/such/group", "../../etc"])
def test_a_cgroup_that_is_not_there_is_named(bpf: None, path: str) -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigError, match=path):
            await by_rules(RULES[0], cgroup=path).run(Sink())

    run(scenario())
