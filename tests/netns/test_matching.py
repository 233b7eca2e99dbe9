"""Reports with untrue 5-tuples, matched to real connections between two hosts.

Bob is the pool: it listens on POOL, and alice connects. What is reported names a port of alice's that is not that of
the connection, as dCache's fireflies do.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager

import msgspec
import pytest

from scitags_agent import connections, presence
from scitags_agent.arrivals import Arrival
from scitags_agent.candidates import GRACE_SECONDS, HARDLY_USED_OCTETS, YOUNG_SECONDS, Place
from scitags_agent.host import Host
from scitags_agent.inet_diag import SockDiagError
from scitags_agent.matching import Matcher
from scitags_agent.waiting import Waiting, could_mean
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.tag import Tag
from tests.netns.conftest import ALICE, BOB, Pair

POOL = 20005
DOOR_PORT = 40001  # of alice's connection to the door
PRODUCTION = Tag(2, 15)
ANALYSIS = Tag(2, 17)
LIMIT_SECONDS = 20
WAIT = 2.0


def report(
    tag: Tag = PRODUCTION, state: FlowState = FlowState.START, *, port: int = DOOR_PORT, pool: int = POOL
) -> FlowEvent:
    return FlowEvent(state=state, key=FlowKey.of(ALICE, port, BOB, pool), tag=tag)


class Link:
    """A connection from alice to the pool."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.key = FlowKey.of(ALICE, client.getsockname()[1], BOB, server.getsockname()[1])

    def move(self, octets: int) -> None:
        """From alice to bob, as a PUT does."""
        while octets:
            chunk = min(octets, 1 << 12)
            self.client.sendall(bytes(chunk))
            got = 0
            while got < chunk:
                got += len(self.server.recv(chunk - got))
            octets -= chunk

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Site:
    """Alice, bob's pool, and a matcher at bob's."""

    def __init__(self, pair: Pair, stack: ExitStack, watch: bool) -> None:
        self._pair = pair
        self._stack = stack
        with pair.bob.entered():
            self._pool = stack.enter_context(socket.create_server((BOB, POOL), family=socket.AF_INET6))
            self.host = Host()
            self.matcher = Matcher(self.host, wait=WAIT, watch=watch)

    def connect(self) -> Link:
        with self._pair.alice.entered():
            client = self._stack.enter_context(socket.create_connection((BOB, POOL), 5))
        server, _ = self._pool.accept()
        server.settimeout(5)
        return Link(client, self._stack.enter_context(server))

    async def waiting(self, count: int = 1) -> None:
        """Until so many starts wait and have been looked at."""
        await until(lambda: sum(one.before is not None for one in self.matcher._waiting) >= count)


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        if condition():
            return
        if time.monotonic() > deadline:
            pytest.fail(f"it did not come within {seconds} s")
        await asyncio.sleep(0.002)


@pytest.fixture(params=["told by the kernel", "looked for"])
def run(pair: Pair, bpf: None, request: pytest.FixtureRequest) -> Callable[[Callable[[Site], Awaitable[None]]], None]:
    """Runs a test at bob's: the sockets of its event loop's thread are bob's."""
    watch = request.param == "told by the kernel"

    @asynccontextmanager
    async def site() -> AsyncIterator[Site]:
        with ExitStack() as stack:
            one = Site(pair, stack, watch)
            try:
                yield one
            finally:
                await one.matcher.close()
                one.host.close()

    async def live(test: Callable[[Site], Awaitable[None]]) -> None:
        async with site() as one:
            await test(one)

    def run_it(test: Callable[[Site], Awaitable[None]]) -> None:
        with pair.bob.entered():
            asyncio.run(asyncio.wait_for(live(test), LIMIT_SECONDS))

    return run_it


Run = Callable[[Callable[[Site], Awaitable[None]]], None]


def test_the_connection_that_comes_next_is_meant_and_the_end_follows(run: Run) -> None:
    async def test(site: Site) -> None:
        other = site.connect()  # of an earlier transfer
        other.move(HARDLY_USED_OCTETS + 1)
        await asyncio.sleep(2 * YOUNG_SECONDS)
        start = asyncio.create_task(site.matcher.match(report()))
        await site.waiting()
        link = site.connect()
        before = time.monotonic()
        assert await start == msgspec.structs.replace(report(), key=link.key)
        assert time.monotonic() - before < 0.5
        link.close()
        ongoing, end = report(state=FlowState.ONGOING), report(state=FlowState.END)
        for event in (ongoing, end):
            assert await site.matcher.match(event) == msgspec.structs.replace(event, key=link.key)
        assert await site.matcher.match(end) is None
        assert dict(site.matcher.counters()) == {
            "exact": 0, "matched": 1, "ambiguous": 0, "unmatched": 1, "elsewhere": 0, "waiting": 0, "remembered": 0
        }  # fmt: skip

    run(test)


def test_a_true_report_is_taken_as_it_is_and_its_connection_is_no_other_s(run: Run) -> None:
    async def test(site: Site) -> None:
        link = site.connect()
        true = report(port=link.key.src_port)
        assert site.matcher.is_exact(true.key)
        assert site.matcher.is_exact(true.key.reversed())
        assert not site.matcher.is_exact(report().key)
        assert await site.matcher.match(true) == true
        assert await site.matcher.match(report(ANALYSIS)) is None
        link.close()
        end = msgspec.structs.replace(true, state=FlowState.END)
        assert await site.matcher.match(end) == end

    run(test)


@pytest.mark.parametrize("port", [0, DOOR_PORT])
def test_an_unknown_far_port_and_the_pool_as_source(run: Run, port: int) -> None:
    async def test(site: Site) -> None:
        event = msgspec.structs.replace(report(), key=report(port=port).key.reversed())
        start = asyncio.create_task(site.matcher.match(event))
        await site.waiting()
        link = site.connect()
        assert await start == msgspec.structs.replace(event, key=link.key.reversed())

    run(test)


def test_an_unknown_near_port(run: Run) -> None:
    async def test(site: Site) -> None:
        link = site.connect()
        assert (await site.matcher.match(report(port=link.key.src_port, pool=0))) == report(port=link.key.src_port)
        assert await site.matcher.match(report(port=0, pool=0)) is None

    run(test)


def test_starts_at_the_same_time_with_different_tags_are_not_guessed(run: Run) -> None:
    async def test(site: Site) -> None:
        starts = [
            asyncio.create_task(site.matcher.match(report(tag, port=DOOR_PORT + number)))
            for number, tag in enumerate((PRODUCTION, ANALYSIS))
        ]
        await site.waiting(2)
        site.connect()
        await until(lambda: all(one.ambiguous for one in site.matcher._waiting))
        # One more start comes: the next connection may be its own, or the second of those before.
        late = asyncio.create_task(site.matcher.match(report(port=DOOR_PORT + 7)))
        await site.waiting(3)
        site.connect()
        site.connect()
        assert await asyncio.gather(*starts, late) == [None, None, None]
        assert site.matcher.counters()["ambiguous"] == 3
        # All have come. What starts now is by itself again.
        again = asyncio.create_task(site.matcher.match(report(port=DOOR_PORT + 8)))
        await site.waiting()
        link = site.connect()
        assert await again == report(port=link.key.src_port)

    run(test)


def test_with_one_tag_it_makes_no_difference(run: Run) -> None:
    async def test(site: Site) -> None:
        starts = [asyncio.create_task(site.matcher.match(report(port=DOOR_PORT + number))) for number in range(2)]
        await site.waiting(2)
        links = [site.connect(), site.connect()]
        found = await asyncio.gather(*starts)
        assert {one.key for one in found if one is not None} == {link.key for link in links}

    run(test)


def test_one_after_the_other_is_told_by_time(run: Run) -> None:
    async def test(site: Site) -> None:
        for number, tag in enumerate((PRODUCTION, ANALYSIS, PRODUCTION)):
            event = report(tag, port=DOOR_PORT + number)
            start = asyncio.create_task(site.matcher.match(event))
            await site.waiting()
            link = site.connect()
            assert await start == msgspec.structs.replace(event, key=link.key)
            link.move(HARDLY_USED_OCTETS)

    run(test)


@pytest.mark.parametrize("run", ["told by the kernel"], indirect=True)
def test_when_it_was_sent_counts_and_not_when_we_get_round_to_it(run: Run) -> None:
    async def test(site: Site) -> None:
        site.matcher.begin_to_watch()
        # The loop does not run meanwhile: the agent hears of all four at once.
        told = []
        for number, tag in enumerate((PRODUCTION, ANALYSIS, PRODUCTION)):
            sent = time.monotonic()
            told.append((report(tag, port=DOOR_PORT + number), sent, site.connect()))
        untagged = site.connect()
        matches = [site.matcher.match(event, sent=sent) for event, sent, _ in reversed(told)]
        found = await asyncio.gather(*matches)
        assert found == [msgspec.structs.replace(event, key=link.key) for event, _, link in reversed(told)]
        # The last connection is of somebody who told nobody, and what is sent after it does not mean it.
        late = asyncio.create_task(site.matcher.match(report(ANALYSIS, port=DOOR_PORT + 7), sent=time.monotonic()))
        await site.waiting()
        link = site.connect()
        assert await late == report(ANALYSIS, port=link.key.src_port)
        assert link.key != untagged.key

    run(test)


@pytest.mark.parametrize(("sent", "numbers"), [((0.0, 0.01), (0,)), ((0.0, -0.01), (0, 1)), ((0.03, 0.2), (0,))])
def test_a_start_that_was_sent_too_late_for_two_round_trips_is_not_meant(
    sent: tuple[float, float], numbers: tuple[int, ...]
) -> None:
    """A connection that took 0.1 s for each; when nothing was sent early enough, the measured round trip was slow."""
    arrival = Arrival(1, FlowKey.of(BOB, POOL, ALICE, 1), stood=0.18, asked=0.0)
    place = Place("tcp", BOB, POOL, ALICE, 0, is_source=False)

    async def meant() -> list[int]:
        starts = [Waiting(report(), place, when, when, True, asyncio.Future(), asyncio.Event()) for when in sent]
        return [starts.index(one) for one in could_mean(starts, arrival)]

    assert tuple(asyncio.run(meant())) == numbers


def test_one_start_and_two_new_connections_are_not_guessed(run: Run) -> None:
    async def test(site: Site) -> None:
        start = asyncio.create_task(site.matcher.match(report()))
        await site.waiting()
        site.connect()
        site.connect()  # no look in between: the loop does not run
        assert await start is None
        assert site.matcher.counters()["ambiguous"] == 1

    run(test)


def test_a_connection_that_is_used_again(run: Run) -> None:
    async def test(site: Site) -> None:
        link = site.connect()
        link.move(3 * HARDLY_USED_OCTETS)
        await asyncio.sleep(GRACE_SECONDS)  # idle between two transfers
        start = asyncio.create_task(site.matcher.match(report()))
        await site.waiting()
        link.move(10)
        assert await start == report(port=link.key.src_port)

    run(test)


async def transferred(site: Site) -> Link:
    """A connection of a transfer that has just ended."""
    start = asyncio.create_task(site.matcher.match(report()))
    await site.waiting()
    link = site.connect()
    assert await start is not None
    link.move(3 * HARDLY_USED_OCTETS)
    assert await site.matcher.match(report(state=FlowState.END)) is not None
    await asyncio.sleep(2 * YOUNG_SECONDS)  # it is not new any more
    return link


def test_a_client_that_keeps_its_connections_uses_them_again_at_once(run: Run) -> None:
    """dCache tells of its next transfer with the 5-tuple of the last, as the connection to the door is the same."""

    async def test(site: Site) -> None:
        link = await transferred(site)
        for tag in (ANALYSIS, PRODUCTION):
            start = asyncio.create_task(site.matcher.match(report(tag)))
            await site.waiting()
            link.move(10)
            began = time.monotonic()
            assert await start == report(tag, port=link.key.src_port)
            assert time.monotonic() - began < GRACE_SECONDS
            assert (await site.matcher.match(report(tag, FlowState.END))) == report(
                tag, FlowState.END, port=link.key.src_port
            )
        assert site.matcher.counters()["matched"] == 3

    run(test)


def test_a_client_that_keeps_its_connection_may_make_another_one(run: Run) -> None:
    async def test(site: Site) -> None:
        await transferred(site)
        start = asyncio.create_task(site.matcher.match(report(ANALYSIS)))
        await site.waiting()
        link = site.connect()
        assert await start == report(ANALYSIS, port=link.key.src_port)

    run(test)


def test_what_is_used_while_another_tag_waits_is_nobody_s(run: Run) -> None:
    async def test(site: Site) -> None:
        link = await transferred(site)
        starts = [
            asyncio.create_task(site.matcher.match(report(tag, port=port)))
            for tag, port in ((ANALYSIS, DOOR_PORT), (PRODUCTION, DOOR_PORT + 1))
        ]
        await site.waiting(2)
        while not all(start.done() for start in starts):
            link.move(10)
            await asyncio.sleep(0.01)
        assert [await start for start in starts] == [None, None]

    run(test)


def test_a_kept_connection_belongs_to_its_transfer_until_that_ends(run: Run) -> None:
    """The end may come after the next start: what moves until then is no sign of use."""

    async def test(site: Site) -> None:
        first = asyncio.create_task(site.matcher.match(report()))
        await site.waiting()
        link = site.connect()
        assert await first == report(port=link.key.src_port)
        await asyncio.sleep(2 * YOUNG_SECONDS)
        second = asyncio.create_task(site.matcher.match(report(ANALYSIS)))
        await site.waiting()
        link.move(10)
        await asyncio.sleep(GRACE_SECONDS / 5)
        assert not second.done()
        assert await site.matcher.match(report(state=FlowState.END)) is not None
        await asyncio.sleep(GRACE_SECONDS / 5)
        assert not second.done()
        link.move(10)
        assert await second == report(ANALYSIS, port=link.key.src_port)

    run(test)


def test_one_that_is_in_use_by_somebody_else_is_not_taken(run: Run) -> None:
    async def test(site: Site) -> None:
        link = site.connect()
        link.move(3 * HARDLY_USED_OCTETS)
        await asyncio.sleep(0.1)
        start = asyncio.create_task(site.matcher.match(report()))
        await site.waiting()
        while not start.done():
            link.move(1000)
            await asyncio.sleep(0.01)
        assert await start is None
        assert site.matcher.counters()["unmatched"] == 1

    run(test)


def test_an_end_alone_means_the_only_connection_that_can_have_moved_so_much(run: Run) -> None:
    """Of what a pool pushes to another storage it tells when that is over, and does not know its own port."""

    async def test(site: Site) -> None:
        links = [site.connect(), site.connect()]

        def end(octets: int, link: Link) -> FlowEvent:
            key = FlowKey.of(BOB, 0, ALICE, link.key.src_port)
            return FlowEvent(state=FlowState.END, key=key, tag=PRODUCTION, usage=Usage(sent=0, received=octets))

        links[0].move(5000)
        told = await site.matcher.match(end(5000, links[0]))
        assert told is not None
        assert told.key == links[0].key.reversed()
        assert await site.matcher.match(end(5001, links[0])) is None
        assert await site.matcher.match(end(0, links[1])) is None
        # To a port to which there are two connections, who is meant cannot be said.
        links[1].move(5000)
        either = FlowEvent(
            state=FlowState.END, key=FlowKey.of(BOB, POOL, ALICE, 0), tag=PRODUCTION, usage=Usage(received=5000)
        )
        assert await site.matcher.match(either) is None

    run(test)


def test_an_end_before_the_connection_lets_the_start_go(run: Run) -> None:
    async def test(site: Site) -> None:
        answers: list[str] = []

        async def tell(state: FlowState) -> None:
            answer = await site.matcher.match(report(state=state))
            answers.append(f"{state.value}: {'nothing' if answer is None else answer.key}")

        start = asyncio.create_task(tell(FlowState.START))
        await site.waiting()
        await asyncio.gather(start, tell(FlowState.END))
        assert answers == ["start: nothing", "end: nothing"]
        # Nor does an end overtake a start that has just been matched.
        answers.clear()
        start = asyncio.create_task(tell(FlowState.START))
        await site.waiting()
        link = site.connect()
        (one,) = site.matcher._waiting
        one.found.add_done_callback(lambda _: asyncio.ensure_future(tell(FlowState.END)))
        await until(lambda: len(answers) == 2)
        assert answers == [f"start: {link.key}", f"end: {link.key}"]

    run(test)


def test_what_is_elsewhere_or_never_comes(run: Run) -> None:
    async def test(site: Site) -> None:
        elsewhere = FlowEvent(
            state=FlowState.START, key=FlowKey.of("2001:db8::77", 1, "2001:db8::78", 2), tag=PRODUCTION
        )
        began = time.monotonic()
        assert await site.matcher.match(elsewhere) is None
        assert time.monotonic() - began < 0.1
        assert await site.matcher.match(report()) is None
        assert WAIT <= time.monotonic() - began < WAIT + 1
        assert (site.matcher.counters()["elsewhere"], site.matcher.counters()["unmatched"]) == (1, 1)

    run(test)


def test_many_ports_in_question_at_once(run: Run) -> None:
    async def test(site: Site) -> None:
        others = [
            asyncio.create_task(site.matcher.match(report(pool=POOL + number, port=DOOR_PORT + number)))
            for number in range(1, 10)
        ]
        start = asyncio.create_task(site.matcher.match(report()))
        await site.waiting(10)
        link = site.connect()
        assert await start == report(port=link.key.src_port)
        assert set(await asyncio.gather(*others)) == {None}

    run(test)


def test_a_kernel_that_refuses_is_asked_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(site: Site) -> None:
        def refuse() -> socket.socket:
            raise SockDiagError("not now")

        with monkeypatch.context() as patched:
            patched.setattr(connections, "open_netlink", refuse)
            start = asyncio.create_task(site.matcher.match(report()))
            await until(lambda: site.matcher.counters().get("failed_looks", 0) > 0)
        await site.waiting()
        link = site.connect()
        assert await start == report(port=link.key.src_port)

    run(test)


@pytest.mark.parametrize("few", [1000, 0])
def test_flows_whose_connections_have_gone(run: Run, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(presence, "FEW_FLOWS", few)

    async def test(site: Site) -> None:
        links = [site.connect() for _ in range(5)]
        never = FlowKey.of(ALICE, 1, BOB, POOL)
        flows = [*(link.key for link in links[:4]), links[4].key.reversed(), never]
        assert await site.matcher.gone(flows) == set()
        for link in links[2:]:
            link.close()
        await asyncio.sleep(0.1)
        # The third has ended by itself meanwhile; of the last nobody knows whether it was ever there.
        flows.remove(links[2].key)
        assert await site.matcher.gone(flows) == {links[3].key, links[4].key.reversed()}
        assert await site.matcher.gone(flows) == set()
        site.matcher.have_seen([never])
        assert await site.matcher.gone(flows) == {never}

    run(test)
