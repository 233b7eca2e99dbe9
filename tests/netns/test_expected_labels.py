"""Connections that are expected, whose far port nobody knows: the kernel labels them from their first data on."""

from __future__ import annotations

import contextlib
import socket
import time
import zlib
from collections.abc import Iterator

import pytest

from scitags_agent.bpf.kernel_label import MAX_EXPECTED, Canonical, Expectation, KernelLabels
from scitags_agent.bpf.layout import pack_key
from scitags_agent.expectations import _canonical
from scitags_core import label
from scitags_core.flow import FlowKey
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
    return bits | label.encode(1, 0, zlib.crc32(pack_key(name).octets, SEED) & label.ENTROPY_MAX) - label.encode(1, 0)


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
    kernel.expect(TO_BOB, Canonical.FROM_FAR, [expectation(number) for number in range(1, MAX_EXPECTED + 2)])


@pytest.mark.parametrize(
    "expect", [too_late, taken_back, expected_no_more, of_another_client, at_another_port, more_than_there_is_room_for]
)
def test_what_meets_no_expectation(hosts: Pair, bob: KernelLabels, seen: Seen, expect: object) -> None:
    assert callable(expect)
    expect(bob)
    found, _ = sent_by_bob(hosts, seen, 40000)
    assert whole_label(ATLAS, FlowKey.of(BOB, PORT, ALICE, 40000)) not in found
    assert bob.met_by(1) == 0


def test_a_connection_that_is_known_goes_before_and_leaves_it_to_the_next(
    hosts: Pair, bob: KernelLabels, seen: Seen
) -> None:
    own = FlowKey.of(BOB, PORT, ALICE, 40000)
    bob.put(pack_key(own).octets, CMS)
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
            bob.put(pack_key(near).octets, given)
        bob.decide(1)
        bob.walk()
        assert (labels() == {given}) is is_meant
        bob.forget(1)
        bob.walk()
        assert (labels() == {given}) is is_meant
