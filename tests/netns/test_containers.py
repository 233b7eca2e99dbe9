"""An agent on the host, storages in containers: network namespaces of their own, with equal private addresses."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scitags_core.flow import FlowState
from scitags_core.tag import Tag
from tests.netns.containers import FLOW, PORT, STORAGE, Agent, Container, named, until
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


def links(container: Container) -> str:
    with container.outside.entered():
        return Path("/proc/thread-self/net/dev").read_text()


def test_one_that_comes_later_is_found_by_its_name_and_again_by_the_next_agent(start: Start, bpf: None) -> None:
    with Container("one") as one, ExitStack() as stack:
        name = "scitags-later"
        agent = start([f"scitags-*-{name}"], RULE + MARKED)
        assert f"namespace scitags-*-{name}: there is none now" in agent.log
        connection = stack.enter_context(one.connect())
        unique = stack.enter_context(named(one, name))
        until(lambda: agent.places() == [unique], "the flow")
        until(lambda: connection.tags() == {ATLAS}, "the mark")
        agent.restart(signal.SIGKILL)
        assert agent.places() == [unique]
        assert connection.tags() == {ATLAS}
        connection.close()
        until(lambda: not agent.flows(), "the end")
        assert [event.state for event in agent.announced(2)] == [FlowState.START, FlowState.END]


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
