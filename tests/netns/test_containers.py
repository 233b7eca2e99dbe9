"""An agent on the host, storages in containers: network namespaces of their own, with equal private addresses."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scitags_agent.client import AgentClient
from scitags_agent.socket_headers import IPV6_DSTOPTS
from scitags_core import exthdr, firefly
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag
from tests.netns.containers import FLOW, PORT, STORAGE, Agent, Connection, Container, named, until
from tests.netns.test_extension_header import DESTINATION, Tap, headers_of
from tests.netns.watching import ATLAS, CMS

RULE = f"""
[[source]]
kind = "sock_diag"
interval = 0.1
[[source.rule]]
experiment = {ATLAS.experiment}
activity = {ATLAS.activity}
local_ports = [{PORT}]
"""
ENRICHED = RULE + '[[enricher]]\nkind = "sock_diag"\n'
MARKED = '[[backend]]\nkind = "marker"\nrescan = 0.2\n'

Start = Callable[..., Agent]


@pytest.fixture
def start(tmp_path: Path, root: None) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda namespaces, more="": stack.enter_context(Agent(tmp_path, namespaces, more))


@pytest.fixture
def two(root: None) -> Iterator[tuple[Container, Container]]:
    with Container("one") as one, Container("other") as other:
        yield one, other


def event(tag: Tag, *, state: str = "start", dst_port: int = FLOW.dst_port) -> str:
    return json.dumps(
        {"state": state, "src": FLOW.src, "src_port": FLOW.src_port, "dst": FLOW.dst, "dst_port": dst_port}
        | {"experiment": tag.experiment, "activity": tag.activity}
    )


def test_connections_of_containers_are_found_told_apart_marked_and_seen_to_end(
    two: tuple[Container, Container], start: Start, bpf: None
) -> None:
    one, other = two
    agent = start([two[0].inside.path, f"pid:{other.inside.pid}"], ENRICHED + MARKED)
    with one.connect() as first, other.connect() as second:
        until(lambda: len(agent.flows()) == 2, "both flows")
        assert {(flow["src"], flow["dst_port"]) for flow in agent.flows()} == {(STORAGE, FLOW.dst_port)}
        assert agent.places() == sorted([one.inside.path, f"pid:{other.inside.pid}"])
        until(lambda: first.tags() == second.tags() == {ATLAS}, "the marks")
        second.send(1000)
        second.close()
        until(lambda: len(agent.flows()) == 1, "the end")
        assert agent.places() == [one.inside.path]
        assert first.tags() == {ATLAS}
    until(lambda: not agent.flows(), "the end")
    events = agent.announced(4)
    assert {(one.key, one.tag) for one in events} == {(FLOW, ATLAS)}
    assert [one.state for one in events] == [FlowState.START] * 2 + [FlowState.END] * 2
    for ended in events[2:]:
        assert ended.usage is not None
        assert ended.usage.sent
        assert ended.usage.sent >= 1 << 16


def test_what_a_container_tells_is_of_its_own_connections(
    two: tuple[Container, Container], start: Start, bpf: None
) -> None:
    """With the far port left open, so that the connection has to be found besides."""
    one, other = two
    agent = start([one.inside.path, other.inside.path], MARKED)
    one.say(agent, event(ATLAS, dst_port=0))
    other.say(agent, event(CMS))
    with one.connect() as first, other.connect() as second:
        until(lambda: agent.status()["matching"].get("matched") == 1, "the match")
        until(lambda: first.tags() == {ATLAS}, "the mark")
        assert second.tags() == {CMS}
        assert sorted((flow["namespace"], flow["experiment"]) for flow in agent.flows()) == sorted(
            [(one.inside.path, ATLAS.experiment), (other.inside.path, CMS.experiment)]
        )
        other.say(agent, event(CMS, state="end"))
        until(lambda: second.tags() == {None}, "the end of the mark")
        assert first.tags() == {ATLAS}
    until(lambda: not agent.flows(), "the end")
    assert [one.state for one in agent.announced(4)] == [FlowState.START] * 2 + [FlowState.END] * 2


def test_an_equal_connection_elsewhere_that_nobody_speaks_of_bears_no_mark(
    two: tuple[Container, Container], start: Start, bpf: None
) -> None:
    one, other = two
    agent = start([one.inside.path, other.inside.path], MARKED)
    with one.connect() as first, other.connect() as second:
        one.say(agent, event(ATLAS))
        until(lambda: first.tags() == {ATLAS}, "the mark")
        assert second.tags() == {None}


def test_a_line_in_the_pipe_is_matched_inside_the_container_that_has_the_address(start: Start, bpf: None) -> None:
    with Container("one") as other, Container("other", storage="fd00:7::2", client="fd00:7::1") as one:
        agent = start([other.inside.path, one.inside.path], MARKED)
        agent.write(f"start tcp fd00:7::2 {PORT} fd00:7::1 0 {ATLAS.experiment} {ATLAS.activity}")
        until(lambda: agent.status()["matching"].get("waiting") == 1, "the start")
        with other.connect(), one.connect() as connection:
            until(lambda: agent.places() == [one.inside.path], "the flow")
            until(lambda: connection.tags() == {ATLAS}, "the mark")
            [flow] = agent.flows()
            assert flow["dst_port"] == connection.key.dst_port
        until(lambda: not agent.flows(), "the end")
        assert [event.key for event in agent.announced(2)] == [connection.key] * 2


def test_where_it_cannot_be_said_which_is_meant_nothing_is_guessed(
    two: tuple[Container, Container], start: Start
) -> None:
    """The pipe does not tell who writes."""
    agent = start([one.inside.path for one in two])
    with two[0].connect() as first, two[1].connect():
        agent.write(f"start tcp {STORAGE} {PORT} {FLOW.dst} {FLOW.dst_port} {ATLAS.experiment} {ATLAS.activity}")
        until(lambda: agent.places() == [""], "the flow")
        assert agent.status()["namespaces"] == {"present": 2, "refused": 0, "unsure": 1}
        first.close()
        agent.write(f"end tcp {STORAGE} {PORT} {FLOW.dst} {FLOW.dst_port} {ATLAS.experiment} {ATLAS.activity}")
        until(lambda: not agent.flows(), "the end")


def test_a_container_that_goes_takes_its_flows_along_and_is_not_held(start: Start, root: None) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(Container("one"))
        agent = start([f"pid:{one.inside.pid}"], ENRICHED)
        connection = one.connect()
        until(agent.flows, "the flow")
        one.say(agent, event(CMS))
        until(lambda: len(agent.flows()) == 2, "the other flow")
        # What holds the namespace: its process, and the socket that is in it.
        one.inside.close()
        connection.close()
        until(lambda: not agent.flows(), "the ends")
        assert [event.state for event in agent.announced(4)] == [FlowState.START] * 2 + [FlowState.END] * 2
        # The veth pair goes with the namespace, which nobody holds.
        until(lambda: "client0" not in links(one), "the end of the namespace")


def test_one_that_goes_while_there_is_no_agent_takes_its_flows_along(
    two: tuple[Container, Container], start: Start
) -> None:
    """Also flows whose connections no agent has seen yet."""
    one, other = two
    agent = start([f"pid:{one.inside.pid}", other.inside.path])
    one.say(agent, event(ATLAS))
    other.say(agent, event(CMS))
    until(lambda: len(agent.flows()) == 2, "both flows")
    agent.end(signal.SIGKILL)
    one.inside.close()
    agent.start()
    assert agent.places() == [other.inside.path]
    assert [(event.state, event.tag) for event in agent.announced(3)[2:]] == [(FlowState.END, ATLAS)]


def links(container: Container) -> str:
    with container.outside.entered():
        return Path("/proc/thread-self/net/dev").read_text()


def test_one_that_comes_later_is_found_by_its_name_and_again_by_the_next_agent(start: Start, bpf: None) -> None:
    with Container("one") as one, ExitStack() as stack:
        pattern = f"scitags-{os.getpid()}-late*"
        agent = start([pattern], RULE + MARKED)
        assert f"namespace {pattern}: there is none now" in agent.log
        connection = stack.enter_context(one.connect())
        unique = stack.enter_context(named(one, "later"))
        until(lambda: agent.places() == [unique], "the flow")
        until(lambda: connection.tags() == {ATLAS}, "the mark")
        agent.restart(signal.SIGKILL)
        assert agent.places() == [unique]
        assert connection.tags() == {ATLAS}
        connection.close()
        until(lambda: not agent.flows(), "the end")
        assert [event.state for event in agent.announced(2)] == [FlowState.START, FlowState.END]


def test_one_that_comes_is_marked_at_once(start: Start, bpf: None) -> None:
    """Its interface is not left for the marker's next look."""
    with Container("one") as one, ExitStack() as stack:
        agent = start([f"scitags-{os.getpid()}-late*"], '[[backend]]\nkind = "marker"\nrescan = 600\n')
        connection = stack.enter_context(one.connect())
        agent.write(f"start tcp {STORAGE} {PORT} {FLOW.dst} {FLOW.dst_port} {ATLAS.experiment} {ATLAS.activity}")
        until(agent.flows, "the flow")
        stack.enter_context(named(one, "late"))
        until(lambda: connection.tags() == {ATLAS}, "the mark")


def test_labels_by_the_kernel_itself_are_those_of_each_container(start: Start, bpf: None) -> None:
    kernels = f"{MARKED}label = 'kernel'\n"
    with Container("one", labels=True) as one, Container("other", labels=True) as other:
        agent = start([one.inside.path, other.inside.path], kernels)
        with other.connect() as second:  # that is open before anybody tells of it
            one.say(agent, event(ATLAS))
            other.say(agent, event(CMS))
            with one.connect() as first:
                until(lambda: first.tags() == {ATLAS}, "the label")
                until(lambda: second.tags() == {CMS}, "the other label")
                other.say(agent, event(CMS, state="end"))
                until(lambda: second.tags() != {CMS}, "the end of the label")
                assert first.tags() == {ATLAS}
                marker = agent.status()["backends"]["marker"]
                assert (marker["interfaces"], marker["packets_marked"]) == (0, 0)


def test_what_a_killed_agent_left_in_a_container_is_taken_away(start: Start, bpf: None) -> None:
    with Container("one") as one:
        agent = start([f"pid:{one.inside.pid}"], RULE + MARKED)
        with one.connect() as connection:
            until(agent.flows, "the flow")
            until(lambda: connection.tags() == {ATLAS}, "the mark")
            agent.end(signal.SIGKILL)
            assert connection.tags() == {ATLAS}
            assert f"pid:{one.inside.pid}: eth0: program " in agent.clean()
            assert connection.tags() == {None}


@pytest.mark.parametrize("ends", ["with its octets", "by the enricher"])
def test_told_by_the_kernel_as_connections_open_and_close(start: Start, bpf: None, ends: str) -> None:
    rule = RULE.replace("sock_diag", "sock_ops").replace("interval = 0.1\n", "")
    by_enricher = '[[enricher]]\nkind = "sock_ops"\n'
    with Container("one") as one, Container("other") as other, Container("third") as nobodys:
        agent = start([one.inside.path, other.inside.path], rule if ends == "with its octets" else by_enricher)
        with one.connect() as first, other.connect() as second, nobodys.connect():
            if ends == "by the enricher":
                one.say(agent, event(ATLAS))
                other.say(agent, event(ATLAS))
            until(lambda: agent.places() == sorted([one.inside.path, other.inside.path]), "the flows")
            first.send(1000)
            second.send(2000)
            second.close()
            if ends == "by the enricher":
                other.say(agent, event(ATLAS, state="end"))
            until(lambda: agent.places() == [one.inside.path], "the end")
        if ends == "by the enricher":
            one.say(agent, event(ATLAS, state="end"))
        until(lambda: not agent.flows(), "the end")
        moved = [event.usage.sent for event in agent.announced(4) if event.usage and event.state is FlowState.END]
        assert moved == [2000, 1000]


def test_a_socket_that_is_passed_along_tells_where_it_is(two: tuple[Container, Container], start: Start) -> None:
    """By a process of the host, which may speak of any."""
    one, other = two
    agent = start([one.inside.path, other.inside.path])
    with one.connect(), other.connect() as second, AgentClient(agent.socket) as client:
        told = FlowEvent(state=FlowState.START, key=FLOW, tag=ATLAS)
        assert client.send([told], [second.storage])
        until(lambda: agent.places() == [other.inside.path], "the flow")


def test_a_header_is_set_on_the_socket_that_is_meant(two: tuple[Container, Container], start: Start) -> None:
    one, other = two
    agent = start([one.inside.path, other.inside.path], '[[backend]]\nkind = "extension_header"\nmode = "socket"\n')
    # Connections that a storage has opened: those that it has accepted bear none by the socket.
    with one.connect(by_storage=True) as first, other.connect(by_storage=True) as second:
        other.say(agent, event(ATLAS))
        until(lambda: header_of(second), "the header")
        assert not header_of(first)
        one.say(agent, event(CMS))
        until(lambda: header_of(first), "the other header")
        assert header_of(first) == exthdr.encode(*CMS, 0)
        assert header_of(second) == exthdr.encode(*ATLAS, 0)


def header_of(connection: Connection) -> bytes:
    return connection.storage.getsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, 64)


def test_a_firefly_of_dcache_means_a_connection_in_the_container_with_the_pool(start: Start, bpf: None) -> None:
    """It names the client's connection to the door, which is another one."""
    heard = '[[source]]\nkind = "firefly"\nlisten = ["[::1]:10514"]\ndialect = "dcache"\n'
    with Container("one") as other, Container("other", storage="fd00:7::2", client="fd00:7::1") as one:
        agent = start([other.inside.path, one.inside.path], heard + MARKED)
        told = FlowEvent(
            state=FlowState.START,
            key=FlowKey.of(one.client, 50000, one.storage, PORT),
            tag=ATLAS,
            start_time=datetime.now(UTC),
        )
        until(lambda: "fireflies are heard" in agent.log, "the source")
        with agent.host.entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as storage:
            octets = firefly.encode(told, now=datetime.now(UTC), host="pool", app="dCache")
            storage.sendto(octets, ("::1", 10514))
        until(lambda: agent.status()["matching"].get("waiting") == 1, "the start")
        with other.connect(), one.connect() as connection:
            until(lambda: connection.tags() == {ATLAS}, "the mark")
            assert agent.places() == [one.inside.path]
            [flow] = agent.flows()
            assert (flow["src"], flow["src_port"]) == (one.client, connection.key.dst_port)


def test_headers_at_tc_are_those_of_each_container(two: tuple[Container, Container], start: Start, bpf: None) -> None:
    """With room by a route in each of them."""
    one, other = two
    backend = '[[backend]]\nkind = "extension_header"\nmode = "tc"\nrescan = 0.2\n'
    agent = start([one.inside.path, other.inside.path], backend)
    taps = [Tap(container.outside, "client0") for container in two]
    try:
        with one.connect() as first, other.connect() as second:
            one.say(agent, event(ATLAS))
            until(lambda: headers(taps[0], first) == {((DESTINATION, ATLAS),)}, "the header")
            assert headers(taps[1], second) == {()}
            other.say(agent, event(CMS))
            until(lambda: headers(taps[1], second) == {((DESTINATION, CMS),)}, "the other header")
            assert headers(taps[0], first) == {((DESTINATION, ATLAS),)}
            until(lambda: agent.status()["backends"]["extension_header"]["routes"] == 2, "both routes")
            other.say(agent, event(CMS, state="end"))
            until(lambda: headers(taps[1], second) == {()}, "the end of the other header")
            assert headers(taps[0], first) == {((DESTINATION, ATLAS),)}
    finally:
        for tap in taps:
            tap.close()


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ("kind = 'marker'", "the container"),
        ("kind = 'marker'", "the pipe"),
        ("kind = 'marker'\nlabel = 'kernel'", "the container"),
        ("kind = 'extension_header'\nmode = 'tc'", "the container"),
    ],
)
def test_a_container_that_has_just_come_is_marked_in_with_its_first_flow(
    start: Start, bpf: None, backend: str, says: str
) -> None:
    """And not only when interfaces are looked at again."""
    with Container("one", labels=True) as one, ExitStack() as stack:
        agent = start([f"scitags-{os.getpid()}-late*"], f"[[backend]]\n{backend}\nrescan = 3600\n")
        stack.enter_context(named(one, "late"))
        if says == "the container":
            one.say(agent, event(ATLAS))
        else:
            agent.write(f"start tcp {STORAGE} {PORT} {FLOW.dst} {FLOW.dst_port} {ATLAS.experiment} {ATLAS.activity}")
        connection = stack.enter_context(one.connect())
        if "marker" in backend:
            until(lambda: connection.tags() == {ATLAS}, "the mark")
        else:
            tap = Tap(one.outside, "client0")
            stack.callback(tap.close)
            # With room by a route, so that full packets bear it, too.
            until(lambda: headers(tap, connection) == {((DESTINATION, ATLAS),)}, "the header")


def headers(tap: Tap, connection: Connection) -> set[tuple[tuple[int, Tag | None], ...]]:
    """Of the storage's packets of some data sent now."""
    tap.packets()
    connection.send()
    return headers_of([packet for packet in tap.packets(connection.key) if packet.payload])


def test_namespaces_may_be_changed_while_the_agent_runs(
    two: tuple[Container, Container], start: Start, bpf: None
) -> None:
    one, other = two
    agent = start([one.inside.path], RULE + MARKED)
    with one.connect(), other.connect() as second:
        until(lambda: agent.places() == [one.inside.path], "the flow")
        agent.reload([other.inside.path])
        until(lambda: other.inside.path in agent.places(), "the other flow")
        until(lambda: second.tags() == {ATLAS}, "the mark")
        assert agent.status()["namespaces"]["present"] == 1
        agent.reload([])
        assert "namespaces" not in agent.status()
