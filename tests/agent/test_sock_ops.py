"""A whole agent that is told of connections by the kernel."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from scitags_agent.bpf.connections import probe
from scitags_core.flow import FlowKey, FlowState, Usage
from scitags_core.tag import Tag
from tests.agent.conftest import Agent, Collector, firefly_backend, wait_for


@pytest.fixture(autouse=True)
def watching() -> None:
    """Skips where connections cannot be watched."""
    reason = probe() if os.geteuid() == 0 else "needs root"
    if reason is not None:
        pytest.skip(f"needs eBPF and cgroup2: {reason}")


def test_an_agent_announces_what_nobody_told_it_of(make_agent: Callable[..., Agent], collector: Collector) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        source = (
            f'[[source]]\nkind = "sock_ops"\n[[source.rule]]\nexperiment = 2\nactivity = 15\nlocal_ports = [{port}]\n'
        )
        agent = make_agent(firefly_backend(collector) + source)
        client = socket.create_connection(server.getsockname()[:2])
        accepted, _ = server.accept()
        with client, accepted:
            wait_for(lambda: agent.accepted("sock_ops") == 1, what="the start")
            accepted.sendall(b"x" * 1000)
            assert client.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
        start, end = collector.events(2)
    assert (start.state, end.state, start.tag, end.tag) == (FlowState.START, FlowState.END, Tag(2, 15), Tag(2, 15))
    assert start.key == end.key == FlowKey.of("::1", port, "::1", client_port := end.key.dst_port)
    assert client_port > 0
    assert end.usage == Usage(received=0, sent=1000)
    assert end.start_time == start.start_time
    assert end.extra["skOps"]["tcpInfo"]["bytesAcked"] == 1000


def test_an_end_from_the_pipe_is_told_the_octets_of_the_connection_that_has_closed(
    make_agent: Callable[..., Agent], collector: Collector
) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        enricher = f'[[enricher]]\nkind = "sock_ops"\nlocal_ports = [{port}]\n'
        agent = make_agent(firefly_backend(collector) + enricher)
        with socket.create_connection(server.getsockname()[:2]) as client:
            accepted, _ = server.accept()
            line = f"tcp ::1 {port} ::1 {client.getsockname()[1]} 2 15\n"
            agent.pipe.write_text(f"start {line}")
            with accepted:
                accepted.sendall(b"x" * 1000)
                assert client.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
                client.sendall(b"thanks")
                assert accepted.recv(6, socket.MSG_WAITALL) == b"thanks"
    agent.pipe.write_text(f"end {line}")
    start, end = collector.events(2)
    assert start.usage is None
    assert end.usage == Usage(received=6, sent=1000)
    told = agent.status()["enrichers"]["sock_ops"]
    assert (told["from_close"], told["from_look_up"], told["no_connection"]) == (1, 0, 0)
