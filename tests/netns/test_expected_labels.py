"""Connections that are expected, whose far port nobody knows: the kernel labels them from their first data on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest

from scitags_agent.bpf.kernel_label import MAX_EXPECTED, Canonical, Expectation, KernelLabels
from scitags_agent.bpf.layout import pack_key
from scitags_agent.expectations import Expectations, Expected, _canonical
from scitags_agent.host import Host
from scitags_agent.matching import Matcher
from scitags_core import label
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.watching import Seen, deliver

SEED = 0x5EED
ATLAS, CMS = label.encode(2, 15), label.encode(3, 14)
PORT = 1094
TO_BOB = FlowKey.of(BOB, PORT, ALICE, 0)  # as bob sees it
FROM_ALICE = FlowKey.of(ALICE, 0, BOB, PORT)  # as alice does


@pytest.fixture
def bob(hosts: Pair) -> Iterator[KernelLabels]:
    with hosts.bob.entered():
        labels = KernelLabels(10, seed=SEED)
    yield labels
    labels.close()


def expectation(number: int, bits: int = ATLAS, *, until: float = 60.0) -> Expectation:
    now = time.monotonic()
    return Expectation(number, now, now + until, bits)


def whole_label(bits: int, near: FlowKey) -> int:
    """As the marker gives it to a connection of these ends."""
    name = min(near, near.reversed())
    return bits | label.encode(1, 0, zlib.crc32(pack_key(name), SEED) & label.ENTROPY_MAX) - label.encode(1, 0)


def cookie_of(one: socket.socket) -> int:
    return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, 57, 8), "little")  # SO_COOKIE


@contextlib.contextmanager
def connected(hosts: Pair, source_port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    client, server = hosts.connect(source_port)
    with client, server:
        yield client, server


def sent_by_bob(hosts: Pair, seen: Seen, source_port: int) -> tuple[set[int], int]:
    """The labels of what bob sends over a connection of alice's, data at once; and the cookie of his socket."""
    with connected(hosts, source_port) as (client, server):
        deliver(server, client, b"x" * 100_000)
        packets = [one for one in seen.packets() if one.ports == (PORT, source_port) and one.octets]
        assert len(packets) > 2
        return {one.word & label.LABEL_MAX for one in packets}, cookie_of(server)


@pytest.mark.parametrize("port", range(40000, 40003))
def test_the_label_is_that_which_the_marker_gives_the_connection(
    hosts: Pair, bob: KernelLabels, seen: Seen, port: int
) -> None:
    bob.expect(TO_BOB, _canonical(TO_BOB), [expectation(1)])
    found, cookie = sent_by_bob(hosts, seen, port)
    assert found == {whole_label(ATLAS, FlowKey.of(BOB, PORT, ALICE, port))}
    assert bob.met_by(1) == bob.take_back(1) == cookie


def test_of_one_that_we_open_too(hosts: Pair, seen: Seen) -> None:
    """Alice's address sorts first; its SYN leaves before she knows that the connection comes to stand."""
    with hosts.alice.entered(), contextlib.closing(KernelLabels(10, seed=SEED)) as kernel:
        kernel.expect(FROM_ALICE, _canonical(FROM_ALICE), [expectation(1)])
        with connected(hosts, 40000) as (client, server):
            deliver(client, server)
            packets = [one for one in seen.packets() if one.ports == (40000, PORT) and one.octets]
            assert {one.word & label.LABEL_MAX for one in packets} == {
                whole_label(ATLAS, FlowKey.of(ALICE, 40000, BOB, PORT))
            }
            assert kernel.met_by(1) == cookie_of(client)


@pytest.mark.parametrize("port", [1000, 50000])
def test_between_two_sockets_of_one_address_the_ports_decide(hosts: Pair, port: int) -> None:
    with hosts.alice.entered():
        seen = Seen(hosts.alice, "lo")
        place = FlowKey.of(ALICE, PORT, ALICE, 0)
        assert _canonical(place) is Canonical.BY_PORT
        listener = socket.create_server((ALICE, PORT), family=socket.AF_INET6)
        client = socket.socket(socket.AF_INET6)
        with contextlib.closing(KernelLabels(10, seed=SEED)) as kernel, contextlib.closing(seen), listener, client:
            kernel.expect(place, Canonical.BY_PORT, [expectation(1)])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((ALICE, port))
            client.connect((ALICE, PORT))
            server, _ = listener.accept()
            with server:
                deliver(server, client, b"x" * 1000)
                labels = {p.word & label.LABEL_MAX for p in seen.packets() if p.octets and p.ports == (PORT, port)}
        assert labels == {whole_label(ATLAS, FlowKey.of(ALICE, PORT, ALICE, port))}


def test_one_expectation_is_for_one_connection_and_two_for_two(hosts: Pair, bob: KernelLabels, seen: Seen) -> None:
    bob.expect(TO_BOB, Canonical.FROM_FAR, [expectation(1), expectation(2)])
    cookies = []
    for port in (40000, 40001, 40002):
        found, cookie = sent_by_bob(hosts, seen, port)
        assert (found == {whole_label(ATLAS, FlowKey.of(BOB, PORT, ALICE, port))}) is (port != 40002)
        cookies.append(cookie)
    assert [bob.met_by(1), bob.met_by(2)] == cookies[:2]


@pytest.mark.parametrize("other", [CMS, 0], ids=["another tag", "none"])
def test_of_those_with_different_labels_nobody_is_given_any(
    hosts: Pair, bob: KernelLabels, seen: Seen, other: int
) -> None:
    bob.expect(TO_BOB, Canonical.FROM_FAR, [expectation(1), expectation(2, other)])
    found, _ = sent_by_bob(hosts, seen, 40000)
    assert not found & {whole_label(bits, FlowKey.of(BOB, PORT, ALICE, 40000)) for bits in (ATLAS, CMS)}
    assert bob.take_back(2) == 0
    found, cookie = sent_by_bob(hosts, seen, 40001)
    assert found == {whole_label(ATLAS, FlowKey.of(BOB, PORT, ALICE, 40001))}
    assert [bob.met_by(1), bob.met_by(2)] == [cookie, 0]


def test_one_that_is_to_bear_none_meets_its_expectation(hosts: Pair, bob: KernelLabels, seen: Seen) -> None:
    bob.expect(TO_BOB, Canonical.FROM_FAR, [expectation(1, 0)])
    found, cookie = sent_by_bob(hosts, seen, 40000)
    assert whole_label(0, FlowKey.of(BOB, PORT, ALICE, 40000)) not in found
    assert bob.met_by(1) == cookie


def too_late(kernel: KernelLabels) -> None:
    kernel.expect(TO_BOB, Canonical.FROM_FAR, [expectation(1, until=0.0)])


def taken_back(kernel: KernelLabels) -> None:
    kernel.expect(TO_BOB, Canonical.FROM_FAR, [expectation(1)])
    assert kernel.take_back(1) == 0


def expected_no_more(kernel: KernelLabels) -> None:
    kernel.expect(TO_BOB, Canonical.FROM_FAR, [expectation(1)])
    kernel.expect(TO_BOB, Canonical.FROM_FAR, [])


def of_another_client(kernel: KernelLabels) -> None:
    kernel.expect(FlowKey.of(BOB, PORT, "2001:db8::3", 0), Canonical.FROM_FAR, [expectation(1)])


def at_another_port(kernel: KernelLabels) -> None:
    kernel.expect(FlowKey.of(BOB, PORT + 1, ALICE, 0), Canonical.FROM_FAR, [expectation(1)])


def more_than_there_is_room_for(kernel: KernelLabels) -> None:
    others = [expectation(number, CMS, until=-1.0) for number in range(2, MAX_EXPECTED + 2)]
    kernel.expect(TO_BOB, Canonical.FROM_FAR, [expectation(1), *others])


@pytest.mark.parametrize(
    "expect", [too_late, taken_back, expected_no_more, of_another_client, at_another_port, more_than_there_is_room_for]
)
def test_what_meets_no_expectation(hosts: Pair, bob: KernelLabels, seen: Seen, expect: object) -> None:
    assert callable(expect)
    expect(bob)
    found, _ = sent_by_bob(hosts, seen, 40000)
    assert whole_label(ATLAS, FlowKey.of(BOB, PORT, ALICE, 40000)) not in found
    assert bob.met_by(1) == 0


def test_of_more_with_one_tag_than_there_is_room_for_the_first_are_expected(
    hosts: Pair, bob: KernelLabels, seen: Seen
) -> None:
    bob.expect(TO_BOB, Canonical.FROM_FAR, [expectation(number) for number in range(1, MAX_EXPECTED + 2)])
    found, cookie = sent_by_bob(hosts, seen, 40000)
    assert found == {whole_label(ATLAS, FlowKey.of(BOB, PORT, ALICE, 40000))}
    assert bob.met_by(1) == cookie


def test_a_connection_that_is_known_goes_before_and_leaves_it_to_the_next(
    hosts: Pair, bob: KernelLabels, seen: Seen
) -> None:
    own = FlowKey.of(BOB, PORT, ALICE, 40000)
    bob.put(pack_key(own), CMS)
    bob.expect(TO_BOB, Canonical.FROM_FAR, [expectation(1)])
    assert sent_by_bob(hosts, seen, 40000)[0] == {CMS}
    found, cookie = sent_by_bob(hosts, seen, 40001)
    assert found == {whole_label(ATLAS, FlowKey.of(BOB, PORT, ALICE, 40001))}
    assert bob.met_by(1) == cookie


@pytest.mark.parametrize("is_meant", [True, False])
def test_until_it_is_decided_about_its_label_stays_whoever_walks(
    hosts: Pair, bob: KernelLabels, seen: Seen, is_meant: bool
) -> None:
    near = FlowKey.of(BOB, PORT, ALICE, 40000)
    given = whole_label(ATLAS, near)
    bob.expect(TO_BOB, Canonical.FROM_FAR, [expectation(1)])
    with connected(hosts, 40000) as (client, server), hosts.bob.entered():

        def labels() -> set[int]:
            seen.words()
            deliver(server, client, b"x" * 10_000)
            return seen.labels()[PORT, 40000]

        bob.walk()
        assert labels() == {given}
        if is_meant:
            bob.put(pack_key(near), given)
        bob.decide(1)
        bob.walk()
        assert (labels() == {given}) is is_meant
        bob.forget(1)
        bob.walk()
        assert (labels() == {given}) is is_meant


# --- what reports mean decides -------------------------------------------------------------------


class Pool:
    """Bob's pool, where reports are matched, and what comes there is expected."""

    def __init__(self, hosts: Pair, kernel: KernelLabels, stack: contextlib.ExitStack) -> None:
        self._hosts, self._kernel, self._stack = hosts, kernel, stack
        self.counters: Counter[str] = Counter()
        self._expectations = Expectations(kernel, self._walk, self.counters)
        # Of connections that come just before one is expected and just after, when is_busy.
        self.quicker: list[tuple[socket.socket, socket.socket]] = []
        self.is_busy = False
        self.announced = 0  # the port of alice's of a connection that has been told of
        self.host = Host()
        stack.callback(self.host.close)
        self.matcher = Matcher(self.host, wait=2.0, expect=self._expect, is_announced=self._is_announced)
        self.matcher.begin_to_watch()

    def _walk(self) -> None:
        with self._hosts.bob.entered():
            self._kernel.walk()

    def _expect(self, place: FlowKey, tag: Tag, sent: float, until: float) -> list[Expected]:
        if self.is_busy:
            self.quicker.append(self.connect(40000))
        one = self._expectations.expect(place, label.encode(*tag), sent, until)
        assert one is not None
        if self.is_busy:
            self.quicker.append(self.connect(40001))
        self.is_busy = False
        return [one]

    def _is_announced(self, key: FlowKey, when: float) -> bool:
        assert when < time.monotonic()
        return key.dst_port == self.announced

    def connect(self, source_port: int) -> tuple[socket.socket, socket.socket]:
        client, server = self._hosts.connect(source_port)
        for one in (client, server):
            self._stack.enter_context(one)
        return client, server

    async def expected(self, count: int) -> None:
        """Return when so many have been."""
        deadline = time.monotonic() + 5
        while True:
            if self.counters["expected"] >= count:
                return
            assert time.monotonic() < deadline, self.counters
            await asyncio.sleep(0.002)


def report(tag: Tag, port: int = 50000) -> FlowEvent:
    """The port is that of another connection."""
    return FlowEvent(state=FlowState.START, key=FlowKey.of(ALICE, port, BOB, PORT), tag=tag)


def met(event: FlowEvent | None) -> int:
    """Which of alice's ports was matched."""
    assert event is not None
    return event.key.src_port


def is_labelled(link: tuple[socket.socket, socket.socket], seen: Seen) -> bool:
    client, server = link
    seen.packets()
    deliver(server, client, b"x" * 1000)
    ports = PORT, client.getsockname()[1]
    words = {one.word & label.LABEL_MAX for one in seen.packets() if one.ports == ports and one.octets}
    return words == {whole_label(ATLAS, FlowKey.of(BOB, ports[0], ALICE, ports[1]))}


@pytest.fixture
def at_the_pool(hosts: Pair, bob: KernelLabels) -> Callable[[Callable[[Pool], Awaitable[None]]], None]:
    """Runs a test at bob's."""

    async def live(test: Callable[[Pool], Awaitable[None]]) -> None:
        with contextlib.ExitStack() as stack:
            pool = Pool(hosts, bob, stack)
            try:
                await asyncio.wait_for(test(pool), 20)
            finally:
                await pool.matcher.close()

    def run_it(test: Callable[[Pool], Awaitable[None]]) -> None:
        with hosts.bob.entered():
            asyncio.run(live(test))

    return run_it


Run = Callable[[Callable[[Pool], Awaitable[None]]], None]
PRODUCTION, ANALYSIS = Tag(2, 15), Tag(3, 14)


def test_what_turns_out_to_be_in_doubt_loses_its_label(at_the_pool: Run, seen: Seen) -> None:
    """Another start was sent before the connection came, and is heard of after it: either could be meant."""

    async def test(pool: Pool) -> None:
        sent = time.monotonic()
        first = asyncio.create_task(pool.matcher.match(report(PRODUCTION), sent=sent))
        await pool.expected(1)
        link = pool.connect(40000)
        second = asyncio.create_task(pool.matcher.match(report(ANALYSIS, 50001), sent=sent))
        assert await first is await second is None
        assert not is_labelled(link, seen)
        assert (pool.counters["expected_wrongly"], pool.counters["expected_met"]) == (1, 0)
        assert pool.matcher.counters()["ambiguous"] == 2

    at_the_pool(test)


@pytest.mark.parametrize("is_sent_known", [True, False])
def test_one_that_came_before_the_agent_heard_is_meant_and_the_next_loses_its_label(
    at_the_pool: Run, seen: Seen, is_sent_known: bool
) -> None:
    async def test(pool: Pool) -> None:
        pool.is_busy = True
        event = await pool.matcher.match(report(PRODUCTION), sent=time.monotonic() if is_sent_known else None)
        if is_sent_known:
            assert met(event) == 40000
        else:  # which of the two came after it was sent is not known
            assert event is None
        for link in pool.quicker:  # the flow is to begin now: that is the marker's affair
            assert not is_labelled(link, seen)
        assert pool.counters == {"expected": 1, "expected_wrongly": 1}

    at_the_pool(test)


def test_where_one_that_is_reported_truly_meets_it_the_next_bears_the_label(at_the_pool: Run, seen: Seen) -> None:
    async def test(pool: Pool) -> None:
        start = asyncio.create_task(pool.matcher.match(report(PRODUCTION), sent=time.monotonic()))
        await pool.expected(1)
        other = pool.connect(40000)
        true = report(ANALYSIS, 40000)
        assert await pool.matcher.match(true) == true
        await pool.expected(2)  # the same again
        assert not is_labelled(other, seen)
        link = pool.connect(40001)
        assert is_labelled(link, seen)
        assert met(await start) == 40001
        assert (pool.counters["expected_wrongly"], pool.counters["expected_met"]) == (1, 1)

    at_the_pool(test)


def test_where_one_that_was_told_of_before_meets_it_the_next_bears_the_label(at_the_pool: Run, seen: Seen) -> None:
    async def test(pool: Pool) -> None:
        pool.announced = 40000
        start = asyncio.create_task(pool.matcher.match(report(PRODUCTION), sent=time.monotonic()))
        await pool.expected(1)
        other = pool.connect(40000)
        await pool.expected(2)  # the same again
        assert not is_labelled(other, seen)
        assert is_labelled(pool.connect(40001), seen)
        assert met(await start) == 40001

    at_the_pool(test)


def test_of_two_that_come_at_once_the_first_is_meant_though_it_is_not_known_when_the_start_was_sent(
    at_the_pool: Run, seen: Seen
) -> None:
    async def test(pool: Pool) -> None:
        start = asyncio.create_task(pool.matcher.match(report(PRODUCTION)))
        await pool.expected(1)
        first, second = pool.connect(40000), pool.connect(40001)
        assert met(await start) == 40000
        assert is_labelled(first, seen)
        assert not is_labelled(second, seen)

    at_the_pool(test)
