"""The source sock_diag: connections that nobody announces, found, tagged, and ended with what they moved."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_agent.host import Host
from scitags_agent.inet_diag import Connection, SockDiagError
from scitags_agent.rules import Rule
from scitags_agent.socket_holders import ANOTHER, NOT_KNOWN, SocketHolders
from scitags_agent.sources import sock_diag
from scitags_agent.sources.sock_diag import SockDiag, SockDiagSettings
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.roles import EventSink
from scitags_core.strict import convert
from scitags_core.tag import Tag
from tests.agent.conftest import Agent, Collector, firefly_backend
from tests.agent.sockets import connect, listener, udp_pair

INTERVAL = 0.05
NEVER = 3600.0
LIMIT_SECONDS = 20
NAME = Path("/proc/self/comm").read_text().rstrip("\n")
TAG = {"experiment": 2, "activity": 15}


class Sink:
    """Keeps what the source tells of."""

    def __init__(self) -> None:
        self.events: list[FlowEvent] = []

    def accept(self, event: FlowEvent) -> None:
        self.events.append(event)

    async def wait(self, count: int) -> list[FlowEvent]:
        for _ in range(1000):
            if len(self.events) >= count:
                return self.events
            await asyncio.sleep(0.005)
        pytest.fail(f"{count} events did not come; there are {self.events}")


@contextlib.asynccontextmanager
async def running(*rules: dict[str, Any], interval: float = INTERVAL) -> AsyncIterator[Sink]:
    source = SockDiag(SockDiagSettings([msgspec.convert(rule, Rule) for rule in rules], interval))
    sink: Any = Sink()
    as_sink: EventSink = sink
    task = asyncio.create_task(source.run(as_sink))
    try:
        await asyncio.sleep(INTERVAL)
        yield sink
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test, LIMIT_SECONDS)

    asyncio.run(bounded())


def told(events: list[FlowEvent]) -> list[tuple[FlowState, FlowKey, Tag, Usage | None]]:
    return [(one.state, one.key, one.tag, one.usage) for one in events]


def test_a_connection_begins_when_it_is_seen_and_ends_as_it_goes() -> None:
    async def test() -> None:
        with listener() as listening:
            before = connect(listening)  # open before the agent came
            async with running(TAG | {"local_ports": [listening.getsockname()[1]]}) as sink:
                await sink.wait(1)
                after = connect(listening)
                await sink.wait(2)
                after.transfer(777)
                after.close()
                await sink.wait(3)
                tag = Tag(2, 15)
                assert told(sink.events) == [
                    (FlowState.START, before.server_key, tag, None),
                    (FlowState.START, after.server_key, tag, None),
                    (FlowState.END, after.server_key, tag, Usage(received=777, sent=0)),
                ]
                first, second, third = sink.events
                assert len({first.transfer_id, second.transfer_id}) == 2
                assert second.transfer_id == third.transfer_id
                assert second.start_time is not None
                assert third.end_time is not None
                assert second.start_time < third.end_time
            before.close()

    run(test())


def test_one_that_lives_between_two_looks_is_told_of_as_it_goes() -> None:
    async def test() -> None:
        with listener() as listening:
            port = listening.getsockname()[1]
            async with running(TAG | {"remote_ports": [port]}, interval=NEVER) as sink:
                pair, idle = connect(listening), connect(listening)
                pair.transfer(99)
                pair.close()
                idle.close()  # moved nothing: no flow
                started, ended = await sink.wait(2)
                assert (started.state, ended.state) == (FlowState.START, FlowState.END)
                assert started.key == ended.key == pair.key
                assert ended.usage == Usage(sent=99, received=0)
            async with running(TAG | {"remote_ports": [port], "user": os.getuid()}, interval=NEVER) as sink:
                pair = connect(listening)
                pair.transfer(99)
                pair.close()
                await asyncio.sleep(0.2)
                assert sink.events == []  # whose it was is not known any more

    run(test())


def test_an_abort_ends_it_too_with_nothing_known_of_its_octets() -> None:
    async def test() -> None:
        with listener() as listening:
            async with running(TAG | {"remote_ports": [listening.getsockname()[1]]}) as sink:
                pair = connect(listening)
                await sink.wait(1)
                pair.transfer(5)
                pair.abort()
                await sink.wait(2)
                assert told(sink.events)[1] == (FlowState.END, pair.key, Tag(2, 15), None)

    run(test())


def test_without_word_from_the_kernel_ends_are_found_by_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(host: Host, heard: Callable[[Connection], None]) -> None:
        raise SockDiagError("not here")

    monkeypatch.setattr(sock_diag, "HostDepartures", none)

    async def test() -> None:
        with listener() as listening:
            async with running(TAG | {"remote_ports": [listening.getsockname()[1]]}) as sink:
                pair = connect(listening)
                pair.transfer(1234)
                await sink.wait(1)
                await asyncio.sleep(10 * INTERVAL)
                pair.close()
                await sink.wait(2)
                assert told(sink.events)[1] == (FlowState.END, pair.key, Tag(2, 15), Usage(sent=1234, received=0))

    run(test())


def test_udp_where_a_rule_asks_for_it() -> None:
    async def test() -> None:
        pair = udp_pair()
        async with running(TAG | {"protocol": "udp", "local_ports": [pair.key.src_port]}) as sink:
            await sink.wait(1)
            pair.close()
            await sink.wait(2)
            assert told(sink.events) == [
                (FlowState.START, pair.key, Tag(2, 15), None),
                (FlowState.END, pair.key, Tag(2, 15), None),
            ]

    run(test())


def test_rules_by_user_program_and_ignore() -> None:
    async def test() -> None:
        with listener() as listening:
            port = listening.getsockname()[1]
            rules = (
                {"ignore": True, "local_ports": [port]},
                {"experiment": 2, "activity": 1, "remote_ports": [port], "user": os.getuid() + 1},
                {"experiment": 2, "activity": 2, "remote_ports": [port], "program": "another program"},
                {"experiment": 2, "activity": 3, "remote_ports": [port], "program": NAME, "user": os.getuid()},
            )
            async with running(*rules) as sink:
                pair = connect(listening)
                await sink.wait(1)
                await asyncio.sleep(4 * INTERVAL)
                assert told(sink.events) == [(FlowState.START, pair.key, Tag(2, 3), None)]
                pair.close()

    run(test())


def test_who_holds_a_socket() -> None:
    with listener() as listening:
        inode = os.fstat(listening.fileno()).st_ino
        assert SocketHolders({NAME, "x"}).of(inode) == {NAME}
        assert SocketHolders({"x"}).of(inode) == ANOTHER
        assert SocketHolders({NAME}).of(0) == NOT_KNOWN


def test_who_cannot_look_into_a_process_does_not_know() -> None:
    """A process of nobody's, which looks for a socket of ours."""
    with listener() as listening:
        inode = os.fstat(listening.fileno()).st_ino
        code = (
            "import os, sys; from scitags_agent.socket_holders import SocketHolders\n"
            "holders = SocketHolders({sys.argv[1]}); os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "print(sorted(holders.of(int(sys.argv[2]))))"
        )
        if os.getuid():
            pytest.skip("needs root, to become somebody who may not look")
        answer = subprocess.run(
            [sys.executable, "-c", code, NAME, str(inode)], capture_output=True, text=True, timeout=20, check=True
        )
        assert answer.stdout == "[]\n"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "no rule"),
        ({"rule": [TAG], "interval": 0}, "interval"),
        ({"rule": [TAG | {"local_port": [1]}]}, "unknown key 'local_port'.*did you mean 'local_ports'"),
        ({"rule": [TAG | {"local_ports": ["x"]}]}, "rule 1: port 'x' is neither"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SockDiag(convert(settings, SockDiagSettings, "here"))


def test_the_whole_way(make_agent: Callable[..., Agent], collector: Collector) -> None:
    """An agent process, a connection that nobody announces, and its fireflies."""
    with listener() as listening:
        port = listening.getsockname()[1]
        agent = make_agent(
            firefly_backend(collector),
            more='[[source]]\nkind = "sock_diag"\ninterval = 0.1\n[[source.rule]]\nexperiment = "atlas"\n'
            f'activity = "production input"\nlocal_ports = [{port}]\n',
        )
        pair = connect(listening)
        collector.wait(1)
        pair.transfer(1 << 16)
        pair.close()
        events = collector.events(2)
    assert [(one.state, one.key, one.tag) for one in events] == [
        (FlowState.START, pair.server_key, Tag(2, 15)),
        (FlowState.END, pair.server_key, Tag(2, 15)),
    ]
    assert events[1].usage == Usage(received=1 << 16, sent=0)
    assert agent.stop() == 0
