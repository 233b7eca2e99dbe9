"""How the storages speak to their agents: the real sources' own parsers must read it."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.pipe_line import parse_line
from scitags_core.tag import Tag
from scitags_demo.reporter import NotReported, Reporter, storm_line

ports = st.integers(1, 65535)


addresses = st.integers(1 << 112, (1 << 128) - 1).map(lambda number: str(ipaddress.IPv6Address(number)))


@given(addresses, ports, ports, st.sampled_from(["start", "end"]))
def test_a_line_says_the_event_in_full_addresses(address: str, one: int, two: int, state: str) -> None:
    event = FlowEvent(state=FlowState(state), key=FlowKey.of(address, one, "2001:db8::2", two), tag=Tag(2, 15))
    line = storm_line(event)
    assert parse_line(line) == event
    assert line.split()[2].count(b":") == 7
    assert line.split()[2].startswith(b"[")


@pytest.mark.parametrize(
    ("src", "dst", "line"),
    [
        ("fd00:1::1", "fd00:1::2", b"start tcp [fd00:1:0:0:0:0:0:1] 8085 [fd00:1:0:0:0:0:0:2] 43720 2 15\n"),
        ("192.0.2.1", "192.0.2.2", b"start tcp 192.0.2.1 8085 192.0.2.2 43720 2 15\n"),
    ],
)
def test_a_line_is_that_of_storm(src: str, dst: str, line: bytes) -> None:
    event = FlowEvent(state=FlowState.START, key=FlowKey.of(src, 8085, dst, 43720), tag=Tag(2, 15))
    assert storm_line(event) == line


@pytest.fixture
def answering(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Reporter]:
    """A reporter, and an agent that gives the answers that a function makes."""

    def make(answer: Callable[[dict[str, Any]], Any]) -> Reporter:
        agent = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        agent.bind(str(tmp_path / "agent"))

        def serve() -> None:
            with agent:
                while True:
                    message, sender = agent.recvfrom(65536)
                    if not sender:
                        return
                    agent.sendto(msgspec.json.encode(answer(msgspec.json.decode(message))), sender)

        threading.Thread(target=serve, daemon=True).start()
        return Reporter(tmp_path / "agent", tmp_path / "pipe", tmp_path / "own")

    return make


def stop(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
        nameless.sendto(b"", str(tmp_path / "agent"))


def test_a_refusal_is_said(answering: Callable[..., Reporter], tmp_path: Path) -> None:
    reporter = answering(lambda _: {"accepted": 0, "refused": ["port 70000 is outside 0..65535"]})
    with pytest.raises(NotReported, match="port 70000"):
        reporter.by_socket([{"state": "start"}])
    reporter.close()
    stop(tmp_path)


def test_the_pipe_is_waited_for(answering: Callable[..., Reporter], tmp_path: Path) -> None:
    (tmp_path / "pipe").touch()
    asked: list[str] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["request"])
        if request["request"] == "events":
            return {"accepted": 0, "refused": []}
        # Counted only when asked for the third time.
        return {"sources": {"named_pipe": {"accepted": 1} if len(asked) > 2 else {}}}

    reporter = answering(answer)
    event = {"state": "start", "src": "2001:db8::1", "src_port": 1, "dst": "2001:db8::2", "dst_port": 2}
    reporter.by_pipe([event | {"experiment": 2, "activity": 15}])
    assert asked == ["status", "status", "status", "events"]
    assert (tmp_path / "pipe").read_bytes() == b"start tcp [2001:db8:0:0:0:0:0:1] 1 [2001:db8:0:0:0:0:0:2] 2 2 15\n"
    reporter.close()
    stop(tmp_path)


def test_an_agent_that_is_not_there_is_said(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "nobody", tmp_path / "pipe", tmp_path / "own")
    with pytest.raises(NotReported, match=r"no answer from the agent at .*nobody"):
        reporter.status()
    reporter.close()
