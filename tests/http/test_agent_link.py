"""What is kept for an agent that is away or busy, and for how long; and that nothing waits for it."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.flow_json import decode_events
from scitags_core.tag import Tag
from scitags_http import agent_link
from scitags_http.agent_link import AgentLink
from tests.agent.conftest import wait_for


def event(number: int) -> FlowEvent:
    return FlowEvent(state=FlowState.START, key=FlowKey.of("::1", 1 + number, "::2", 2), tag=Tag(2, 15))


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "agent.sock"


@contextlib.contextmanager
def agent(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(os.fspath(path))
        one.settimeout(5)
        yield one
    path.unlink()


def ports(one: socket.socket, count: int) -> list[int]:
    found = []
    for _ in range(count):
        ((told,), _) = decode_events(one.recv(1 << 16))
        found.append(told.key.src_port)
    return found


def test_what_an_absent_agent_was_not_told_comes_when_it_is_there(path: Path) -> None:
    link = AgentLink(path)
    for number in range(3):
        link.tell(event(number))
    with agent(path) as one:
        link.tell(event(3))
        assert ports(one, 4) == [1, 2, 3, 4]
        wait_for(lambda: link.counters["sent"] == 4)
        assert link.counters["lost"] == 0
        link.tell(event(4))
        assert ports(one, 1) == [5]
    link.close()


def test_a_stuck_agent_costs_nobody_time_and_nothing_is_out_of_order(path: Path) -> None:
    with agent(path) as one:
        link = AgentLink(path)
        began = time.monotonic()
        for number in range(3000):  # far more than the kernel queues
            link.tell(event(number))
        assert time.monotonic() - began < 5
        assert link.counters["kept"] > 0
        assert ports(one, 3000) == list(range(1, 3001))
        assert link.counters["lost"] == 0
        link.close()


def test_what_is_kept_is_bounded_in_number_and_in_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_link, "KEPT_EVENTS", 10)
    monkeypatch.setattr(agent_link, "KEPT_SECONDS", 0.3)
    link = AgentLink(path)
    for number in range(25):
        link.tell(event(number))
    assert link.counters["lost"] >= 15
    wait_for(lambda: link.counters["lost"] == 25)
    with agent(path) as one:
        link.tell(event(30))
        assert ports(one, 1) == [31]
    link.close()


def test_closing_loses_what_cannot_be_told(path: Path) -> None:
    link = AgentLink(path)
    link.tell(event(1))
    link.close()
    assert link.counters["lost"] == 1


def test_a_forked_process_tells_by_itself(path: Path) -> None:
    link = AgentLink(path)
    child = os.fork()
    if child == 0:
        link.tell(event(2))
        time.sleep(2)
        os._exit(0)
    with agent(path) as one:
        link.tell(event(1))
        assert sorted(ports(one, 2)) == [2, 3]
    os.waitpid(child, 0)
    link.close()
