"""The Unix socket by connection, who may send, and descriptors that are passed along."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_agent.client import AgentClient
from scitags_agent.sources.unix import UnixSettings, UnixSocket
from scitags_core import exthdr
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from tests.agent.conftest import Agent, Collector, firefly_backend, wait_for
from tests.agent.events import PRODUCTION, end, start
from tests.agent.sockets import answered_beside

IPV6_DSTOPTS = 59  # linux/in6.h


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, FlowKey]]:
    """One end of a TCP connection on loopback, and its 5-tuple from there."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        near = socket.create_connection(server.getsockname()[:2])
        far, _ = server.accept()
        with near, far:
            yield near, FlowKey.of(*near.getsockname()[:2], *near.getpeername()[:2])


def socket_source(directory: Path, **settings: object) -> str:
    lines = "".join(f"{name} = {value!r}\n".replace("'", '"') for name, value in settings.items())
    return f'[[source]]\nkind = "unix"\nname = "own"\npath = "{directory}/own"\n{lines}'


def test_events_and_requests_by_connection(
    make_agent: Callable[..., Agent], collector: Collector, tmp_path: Path
) -> None:
    agent = make_agent(firefly_backend(collector) + socket_source(tmp_path, type="seqpacket"))
    with AgentClient(tmp_path / "own", type="seqpacket") as client:
        assert client.send([start()])
        assert client.announce([start(transfer_id="b")]) == []
        assert len(list(client.flows())) == 2
        assert client.status()["sources"]["own"] == {"accepted": 2}
        collector.wait(2)
        agent.kill()
        assert not client.send([end()])
        agent.start()
        assert client.announce([end(), end(transfer_id="b")]) == []
    collector.wait(4)
    assert agent.status()["table"]["flows"] == 0
    # Who does not know the type of the socket finds out.
    with AgentClient(tmp_path / "own") as client:
        assert client.send([start()])
        assert client.status()["sources"]["own"] == {"accepted": 3}
    with AgentClient(tmp_path / "own") as client:
        assert len(list(client.flows())) == 1


def test_a_table_longer_than_an_answer_comes_in_parts(agent: Agent) -> None:
    keys = [FlowKey.of("2001:db8::1", port, "2001:db8::2", 1094) for port in range(1, 1201)]
    with AgentClient(agent.socket) as client:
        for first in range(0, len(keys), 300):
            assert client.announce([start(key=key) for key in keys[first : first + 300]]) == []
        found = list(client.flows())
    assert [one["src_port"] for one in found] == list(range(1, 1201))
    assert {(one["experiment"], one["activity"]) for one in found} == {PRODUCTION}


@pytest.mark.parametrize("kind", ["datagram", "seqpacket"])
def test_only_those_who_may_send(
    make_agent: Callable[..., Agent], collector: Collector, tmp_path: Path, kind: str
) -> None:
    mine = socket_source(tmp_path, type=kind, users=[os.geteuid()])
    others = mine.replace("own", "others").replace(f"[{os.geteuid()}]", "[65534]") + "groups = [65534]\n"
    agent = make_agent(firefly_backend(collector) + mine + others)
    for name in ("own", "others"):
        with AgentClient(tmp_path / name, type=kind) as client:  # type: ignore[arg-type]
            wait_for((tmp_path / name).exists)
            assert client.send([start()])
            wait_for(lambda: bool(agent.status()["sources"][name]), what="an event")  # noqa: B023
    sources = agent.status()["sources"]
    assert (sources["own"], sources["others"]) == ({"accepted": 1}, {"refused": 1})
    assert f"user {os.geteuid()} may not send" in agent.log.read_text()


def open_descriptors(agent: Agent) -> int:
    """Once the agent is done with what it was asked before: each request is answered on a socket of its own."""
    answered_beside(agent.socket, b'{"request": "status"}')
    assert agent.process is not None
    return len(os.listdir(f"/proc/{agent.process.pid}/fd"))  # noqa: PTH208


def test_a_descriptor_tells_the_ports_and_is_not_held(
    agent: Agent, collector: Collector, connection: tuple[socket.socket, FlowKey]
) -> None:
    near, key = connection
    unknown = FlowKey.of(key.dst, 0, key.src, key.src_port)  # as a storage that only knows its own port
    with AgentClient(agent.socket) as client:
        client.announce([])
        before = open_descriptors(agent)
        assert client.send([FlowEvent(state=FlowState.START, key=unknown, tag=PRODUCTION)], [near])
        assert collector.events(1)[0].key == key.reversed()
        # Nobody here acts on sockets; whoever held one would keep its connection open.
        assert open_descriptors(agent) == before


def test_a_descriptor_goes_to_the_backend_that_acts_on_sockets(
    make_agent: Callable[..., Agent], connection: tuple[socket.socket, FlowKey], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: extension headers take CAP_NET_RAW")
    near, key = connection
    agent = make_agent('[[backend]]\nkind = "extension_header"\nmode = "socket"\n' + socket_source(tmp_path))
    with AgentClient(tmp_path / "own") as client:
        wait_for((tmp_path / "own").exists)
        assert client.send([start(key=key)], [near])
        wait_for(lambda: bool(near.getsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, 64)), what="a header")
        bears = near.getsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, 64)
        assert exthdr.decode(bears).tag == PRODUCTION
        # Found again without the descriptor.
        assert client.send([end(key=key)])
        wait_for(lambda: not near.getsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, 64), what="no header")
    # Counted a moment after the kernel has done it.
    wait_for(
        lambda: agent.status()["backends"]["extension_header"].get("headers_removed") == 1, what="one header removed"
    )


def test_a_descriptor_of_something_else_is_refused_and_nothing_leaks(
    agent: Agent, connection: tuple[socket.socket, FlowKey], tmp_path: Path
) -> None:
    near, key = connection
    other = FlowKey.of(key.src, key.src_port, "2001:db8::7", 1)
    with AgentClient(agent.socket) as client, socket.socket() as unconnected, (tmp_path / "file").open("w") as file:
        client.announce([])
        before = open_descriptors(agent)
        for number, passed in enumerate((near, unconnected, file), 1):
            assert client.send([start(key=other)], [passed])  # type: ignore[list-item]
            wait_for(lambda: agent.status()["sources"]["unix"].get("refused", 0) == number, what="a refusal")  # noqa: B023
        for _ in range(300):
            assert client.send([end(key=key)], [near] * 3) or True
            client.status()
        assert open_descriptors(agent) == before
    said = agent.log.read_text()
    assert f"the descriptor passed along is of {key}" in said
    assert "the descriptor passed along is of no connected socket" in said
    assert "the descriptor passed along is of no socket" in said


def test_a_descriptor_whose_other_side_has_gone_costs_no_event(agent: Agent, collector: Collector) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        far = socket.create_connection(server.getsockname()[:2])
        near, _ = server.accept()
    key = FlowKey.of(*near.getsockname()[:2], *near.getpeername()[:2])
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    wait_for(lambda: not is_connected(near), what="a reset")
    with near, AgentClient(agent.socket) as client:
        assert client.send([start(key=key)], [near])
        assert collector.events(1)[0].key == key
        unknown = FlowKey.of(key.src, key.src_port, key.dst, 0)
        assert client.send([start(key=unknown)], [near])
        wait_for(lambda: agent.status()["sources"]["unix"].get("refused", 0) == 1, what="a refusal")


def is_connected(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("settings", [{"users": ["no-such-user"]}, {"groups": ["no-such-group"]}])
def test_an_unknown_user_or_group_is_named(settings: dict[str, list[str | int]]) -> None:
    with pytest.raises(ConfigError, match=r"there is no (user|group) 'no-such-"):
        UnixSocket(UnixSettings(**settings))  # type: ignore[arg-type]
