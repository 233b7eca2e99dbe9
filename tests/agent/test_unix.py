"""The Unix socket and its client, with a real agent at the other end."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from scitags_agent.client import AgentClient, AgentUnavailable
from scitags_core.flow import FlowState, Usage
from tests.agent.conftest import Agent, Collector, wait_for
from tests.agent.events import ANALYSIS, NOON, PRODUCTION, end, seconds, start
from tests.agent.sockets import answered_beside

ONE = {"state": "start", "src": "2001:db8::1", "src_port": 1, "dst": "2001:db8::2", "dst_port": 2, "scitag": 143}


def send(agent: Agent, content: object) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(content if isinstance(content, bytes) else msgspec.json.encode(content), os.fspath(agent.socket))


def test_one_event_and_an_array_of_them(agent: Agent, collector: Collector) -> None:
    send(agent, ONE)
    send(agent, [ONE | {"state": "end", "usage": {"sent": 5}}, ONE | {"src": "192.0.2.1", "dst": "::ffff:192.0.2.2"}])
    first, second, third = collector.events(3)
    assert (first.state, first.tag) == (FlowState.START, PRODUCTION)
    assert (second.state, second.usage, second.start_time) == (FlowState.END, Usage(sent=5), first.start_time)
    assert (third.key.src, third.key.dst) == ("192.0.2.1", "192.0.2.2")


def test_announced_events_are_in_force_and_refusals_come_back(agent: Agent, collector: Collector) -> None:
    timed = msgspec.structs.replace(end(), start_time=NOON, end_time=NOON + seconds(1), application="test")
    with AgentClient(agent.socket) as client:
        assert client.announce([start(), start(ANALYSIS)], timeout=5) == []
        assert agent.status()["backends"]["firefly"]["sent"] == 2
        assert client.announce([timed], timeout=5) == []
        answer = client._ask({"request": "events", "events": [ONE | {"scitag": 64}, ONE | {"stat": 1}, ONE]}, 5)
    assert answer["accepted"] == 1
    assert "scitag 64 is outside 65..65535" in answer["refused"][0]
    assert "unknown field `stat`" in answer["refused"][1]
    assert collector.events(4)[2].application == "test"
    assert agent.status()["sources"]["unix"] == {"accepted": 4, "refused": 2}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b"7", "Expected `object`, got `int`"),
        (b'{"request": "bye"}', "request 'bye' is none of events, flows and status"),
        (b"[" * 5000 + b"]" * 5000, "refused source=unix"),  # too deep for Python 3.11, and no event for any
        (msgspec.json.encode(ONE | {"experiment": 2}), "both scitag and experiment"),
        (msgspec.json.encode(ONE | {"dst": "host.example"}), "'host.example' is not an IP address"),
    ],
)
def test_rubbish_is_refused_by_name(agent: Agent, collector: Collector, message: bytes, said: str) -> None:
    send(agent, message)
    send(agent, ONE)
    collector.events(1)
    assert agent.status()["sources"]["unix"] == {"accepted": 1, "refused": 1}
    assert said in agent.log.read_text()


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (b'{"request": "bye"}', "request 'bye' is none of events, flows and status"),
        (b'{"request": "flows", "from": -1}', "from -1 is no number of a flow"),
        (b'{"request": "flows", "from": 1000000000000000000000}', "from 1000000000000000000000 is no number of a flow"),
    ],
)
def test_a_request_that_cannot_be_met_is_answered_too(agent: Agent, request_: bytes, why: str) -> None:
    assert msgspec.json.decode(answered_beside(agent.socket, request_)) == {"error": why}
    assert agent.status()["sources"]["unix"] == {"refused": 1}


def test_a_socket_that_is_taken_away_is_made_anew(agent: Agent, collector: Collector) -> None:
    agent.socket.unlink()
    wait_for(agent.socket.exists, what="a new socket")
    with AgentClient(agent.socket) as client:
        wait_for(lambda: client.send([start()]), what="a socket that somebody listens at")
    collector.events(1)
    # What another has put there meanwhile is not ours to remove.
    other = agent.socket.with_name("other")
    other.write_text("another's")
    other.replace(agent.socket)
    assert agent.stop() == 0
    assert agent.socket.read_text() == "another's"


def test_a_sender_never_waits_and_is_told_nothing_without_an_agent(tmp_path: Path) -> None:
    with AgentClient(tmp_path / "absent") as client:
        assert client.send([start()]) is False
        with pytest.raises(AgentUnavailable, match="absent"):
            client.status(timeout=0.2)


@pytest.mark.parametrize("request_", [b'{"request": "status"}', b'{"request": "events", "events": []}'])
def test_a_request_is_answered_on_the_socket_that_comes_along(agent: Agent, request_: bytes) -> None:
    """By which an agent answers that is another user's, or sees other files or another network than its sender."""
    assert msgspec.json.decode(answered_beside(agent.socket, request_))


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(make_agent: Callable[..., Agent]) -> None:
    backend = '[[backend]]\nkind = "firefly"\nto_destination = false\n'
    first = make_agent(backend, started=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(os.fspath(first.socket))
    first.start()
    assert stat.S_IMODE(first.socket.stat().st_mode) == 0o660
    second = make_agent(backend, started=False)
    second.config.write_text(second.config.read_text().replace(str(second.socket), str(first.socket)))
    second.start_without_waiting()
    wait_for(lambda: "another agent listens there" in second.log.read_text(), what="the second agent's complaint")
    second.kill()
    assert first.status()["sources"]["unix"] == {}


def test_events_sent_before_the_agent_stops_are_announced(agent: Agent, collector: Collector) -> None:
    with AgentClient(agent.socket) as client:
        sent = sum(client.send([start()]) for _ in range(200))
    assert agent.stop() == 0
    assert len(collector.wait(sent)) == sent > 0
