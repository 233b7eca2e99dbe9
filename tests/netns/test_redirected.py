"""Reports of a pool that pulls and pushes: they name the other storage's door, which sends it elsewhere.

Bob is the pool. Alice is the other storage, whose pool is at PORTS[0]; its door is at an address of nobody's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from scitags_agent import redirected
from scitags_agent.host import Host
from scitags_agent.matching import Matcher
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag
from tests.netns.conftest import ALICE, BOB, Pair

PORTS = (20005, 20006)
UNUSED = 21000  # below those that the kernel gives
DOOR = ("2001:db8::d", 2880)
PRODUCTION, ANALYSIS = Tag(2, 15), Tag(2, 17)


class Site:
    """What bob connects to, and a matcher at bob's."""

    def __init__(self, pair: Pair, stack: ExitStack) -> None:
        self._stack = stack
        with pair.alice.entered():
            for port in PORTS:
                stack.enter_context(socket.create_server((ALICE, port), family=socket.AF_INET6))
        with pair.bob.entered():
            self.host = Host()
            self.matcher = Matcher(self.host)

    def connect(self, port: int = PORTS[0], own: int = 0) -> int:
        """Bob's own port of a connection to alice; to be called at bob's."""
        one = self._stack.enter_context(socket.socket(socket.AF_INET6))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((BOB, own))
        one.connect((ALICE, port))
        return int(one.getsockname()[1])

    def match(self, event: FlowEvent) -> FlowEvent | None:
        return asyncio.run(self.matcher.match(event, is_redirected=True))

    def counted(self) -> dict[str, int]:
        return {name: count for name, count in self.matcher.counters().items() if count}


@pytest.fixture
def site(pair: Pair) -> Iterator[Site]:
    with ExitStack() as stack:
        one = Site(pair, stack)
        stack.callback(one.host.close)
        with pair.bob.entered():
            yield one


def report(
    own: int, tag: Tag = PRODUCTION, state: FlowState = FlowState.START, far: tuple[str, int] = DOOR
) -> FlowEvent:
    return FlowEvent(state=state, key=FlowKey.of(*far, BOB, own), tag=tag, application="remotehttpdatatransfer")


def ended(event: FlowEvent) -> FlowEvent:
    return msgspec.structs.replace(event, state=FlowState.END)


def test_the_connection_with_the_port_is_meant_wherever_it_goes(site: Site) -> None:
    site.connect()
    own = site.connect()
    start, key = report(own), FlowKey.of(ALICE, PORTS[0], BOB, own)
    assert site.match(start) == msgspec.structs.replace(start, key=key)
    assert site.match(ended(start)) == msgspec.structs.replace(ended(start), key=key)
    assert site.counted() == {"matched": 1}


def test_one_that_was_not_sent_elsewhere_is_told_truly(site: Site) -> None:
    start = report(site.connect(), far=(ALICE, PORTS[0]))
    assert site.match(start) == start
    assert site.match(ended(start)) == ended(start)
    assert site.counted() == {"exact": 1}


@pytest.mark.parametrize("connections", [0, 2])
def test_with_no_such_connection_or_two_it_is_nobody_s_and_ends_as_it_was_told(site: Site, connections: int) -> None:
    own = UNUSED
    for port in PORTS[:connections]:
        own = site.connect(port, own)
    start = report(own)
    assert site.match(start) is None
    assert site.match(ended(start)) == ended(start)
    assert site.match(ended(start)) is None
    assert site.counted() == {"unmatched": 2}


def test_a_connection_that_somebody_has_is_not_given_again(site: Site) -> None:
    own = site.connect()
    assert site.match(report(own)) is not None
    assert site.match(report(own, ANALYSIS)) is None


def test_what_is_pushed_ends_with_its_start_though_another_port_is_told(site: Site) -> None:
    """The start has the connection to the door, and the end that by which the data went."""
    at_door, other, data = (site.connect() for _ in range(3))
    first, second = report(at_door, far=(ALICE, PORTS[0])), report(other, ANALYSIS, far=(ALICE, PORTS[0]))
    for start in (first, second):
        assert site.match(start) == start
    for start in (second, first):
        end = ended(msgspec.structs.replace(start, key=FlowKey.of(ALICE, PORTS[0], BOB, data), is_reversed=True))
        assert site.match(end) == msgspec.structs.replace(end, key=start.key)
    assert site.counted() == {"exact": 2}


def test_an_end_whose_start_was_lost_ends_no_other(site: Site) -> None:
    """Neither that of a pull, nor that of a push beside which there are pulls alone."""
    one, other = site.connect(), site.connect()
    start, lost = report(one), report(other)
    pulled = site.match(start)
    assert pulled is not None
    assert site.match(ended(lost)) is None
    assert site.match(ended(msgspec.structs.replace(lost, is_reversed=True))) is None
    assert site.match(ended(start)) == ended(pulled)


def test_what_never_ends_is_forgotten(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirected, "STARTS_REMEMBERED", 2)
    pushes = [report(site.connect(), far=(ALICE, PORTS[0])) for _ in range(3)]
    for start in pushes:
        assert site.match(start) == start
    end = msgspec.structs.replace(ended(report(UNUSED, far=(ALICE, PORTS[0]))), is_reversed=True)
    assert site.match(end) == msgspec.structs.replace(end, key=pushes[1].key)
