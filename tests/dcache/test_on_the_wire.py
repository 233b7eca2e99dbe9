"""What a pool tells as dCache's do, on the wire: its data connections are marked, and nobody else's."""

from __future__ import annotations

import socket
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest

from scitags_agent.candidates import YOUNG_SECONDS
from tests.agent.conftest import wait_for
from tests.dcache.conftest import ANALYSIS, CAROL, PRODUCTION, Site
from tests.dcache.pool import POOL
from tests.netns.conftest import ALICE, BOB

OCTETS = 2_000_000
REPEATED = 50
WEB, PUSHED = 8088, 50_000
PULL = "remotehttpsdatatransfer"
APART = 0.010
REDIRECT_SECONDS = (0.002, 0.003, 0.005)  # from the pool's start to the client's connection


def test_a_download_is_marked_and_its_neighbours_are_not(site: Site) -> None:
    busy = site.download(None)  # the same client's, of an earlier transfer that nobody tagged
    busy.connect()
    busy.send(100_000)
    time.sleep(2 * YOUNG_SECONDS)
    one, neighbour = site.download(PRODUCTION), site.download(None, client=CAROL)
    one.tell()
    for download in (neighbour, one):
        download.connect()
    (start,) = site.agent.wait_for(bool, "the start")
    site.seen.words()
    for download in (one, busy, neighbour) * 3:
        download.send(OCTETS // 3)
    seen = site.tags()
    assert set(seen) == {one.ports, busy.ports, neighbour.ports}
    assert min(len(tags) for tags in seen.values()) > 100
    assert set(seen[one.ports]) == {PRODUCTION}
    assert set(seen[busy.ports]) | set(seen[neighbour.ports]) == {None}
    # The start is the one that was heard, and the end is no later than now.
    key = (BOB, one.ports[1], ALICE, POOL)
    one.end()
    (end,) = site.agent.wait_for(bool, "the end")
    assert (start.state, end.state, end.ends, end.scitag) == ("start", "end", key, PRODUCTION.scitag)
    assert end.octets[1] == 3 * (OCTETS // 3)
    assert end.start_time == start.start_time < end.end_time < f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"
    assert site.matching()["matched"] == 1
    for download in (busy, neighbour):
        download.end()


@pytest.mark.parametrize("pause", [0.0, 0.001, 0.002], ids=lambda pause: f"{pause * 1000:g} ms")
def test_data_that_comes_at_once(site: Site, pause: float) -> None:
    """Nothing waits for the agent: what is not marked is what left before the match, and nothing after it.

    pause is from the request to the first data: what a pool needs to find the mover, and to open and read the file.
    """
    unmarked = []
    for _ in range(10):
        download = site.download(PRODUCTION)
        download.tell()
        time.sleep(0.002)
        download.connect()
        time.sleep(pause)
        for _chunk in range(OCTETS // 100_000):
            download.send(50_000)
            time.sleep(0.005)
        tags = site.tags()[download.ports]
        download.end()
        first = tags.index(PRODUCTION)
        assert set(tags[first:]) == {PRODUCTION}
        unmarked.append((first, len(tags)))
    lost, whole = (sum(column) for column in zip(*unmarked, strict=True))
    downloads = sum(first > 0 for first, _ in unmarked)
    print(
        f"unmarked before the match: {lost} of {whole} packets with data, of {downloads} of {len(unmarked)} downloads"
    )
    assert lost < whole / 2


@pytest.mark.parametrize("kind", ["site", "labelling_site"])
def test_a_client_that_keeps_its_connections(request: pytest.FixtureRequest, kind: str) -> None:
    """Its transfers are all told with the 5-tuple of its connection to the door, and all data go by one to the pool."""
    site: Site = request.getfixturevalue(kind)
    one = site.download(PRODUCTION)
    one.tell()
    one.connect()
    for number, tag in enumerate((PRODUCTION, ANALYSIS, PRODUCTION)):
        if number:
            one.tag = tag
            one.tell()
            wait_for(lambda: site.matching()["waiting"] == 1, what="a start that waits")
            one.ask()
        (start,) = site.agent.wait_for(bool, "the start")
        site.tags()
        one.send(OCTETS // 10)
        assert set(site.tags()[one.ports]) == {tag}
        one.be_over()
        (end,) = site.agent.wait_for(bool, "the end")
        assert start.ends == (BOB, one.ports[1], ALICE, POOL)
        assert (start.state, start.scitag, end.state, end.ends) == ("start", tag.scitag, "end", start.ends)
    assert site.matching()["matched"] == 3
    one.close()


def test_what_a_pool_pushes_is_told_of_when_it_is_over(site: Site) -> None:
    """There is no start, and its own port is not told: its packets cannot be marked, but it can be announced."""
    with ExitStack() as stack:
        with site.pair.bob.entered():
            web = stack.enter_context(socket.create_server((BOB, WEB), family=socket.AF_INET6))
        with site.pair.alice.entered():
            pool = stack.enter_context(socket.create_connection((BOB, WEB), 10))
        remote = stack.enter_context(web.accept()[0])
        pool.sendall(bytes(PUSHED))
        received = 0
        while received < PUSHED:
            received += len(remote.recv(PUSHED))
        site.pool.tell("end", (BOB, WEB), PRODUCTION, sent=PUSHED, seconds=0.5, own_port=0)
        (end,) = site.agent.wait_for(bool, "the end")
        assert (end.state, end.ends, end.octets) == ("end", (BOB, WEB, ALICE, pool.getsockname()[1]), (0, PUSHED))
    took = datetime.fromisoformat(end.end_time) - datetime.fromisoformat(end.start_time)
    assert took == timedelta(seconds=0.5)


def test_what_a_pool_pulls_comes_from_wherever_the_other_storage_sends_it(site: Site) -> None:
    """Its fireflies have the other one's door, and its own port of the connection to the other one's pool."""
    with ExitStack() as stack:
        with site.pair.bob.entered():
            door, far_pool = (
                stack.enter_context(socket.create_server((address, WEB), family=socket.AF_INET6))
                for address in (BOB, CAROL)
            )
        with site.pair.alice.entered():
            at_door, data = (stack.enter_context(socket.create_connection((there, WEB), 10)) for there in (BOB, CAROL))
        stack.enter_context(door.accept()[0])
        far = stack.enter_context(far_pool.accept()[0])
        own, ends = data.getsockname()[1], (CAROL, WEB, ALICE, data.getsockname()[1])
        site.pool.tell("start", (BOB, WEB), PRODUCTION, own_port=own, application=PULL)
        (start,) = site.agent.wait_for(bool, "the start")
        site.tags()
        for connection in (data, at_door):
            connection.sendall(bytes(PUSHED))
        received = 0
        while received < PUSHED:
            received += len(far.recv(PUSHED))
        seen = site.tags()
        assert set(seen[own, WEB]) == {PRODUCTION}
        assert set(seen[at_door.getsockname()[1], WEB]) == {None}
        site.pool.tell("end", (BOB, WEB), PRODUCTION, sent=PUSHED, own_port=own, application=PULL)
        (end,) = site.agent.wait_for(bool, "the end")
    assert [(one.state, one.ends) for one in (start, end)] == [("start", ends), ("end", ends)]
    assert end.octets == (0, PUSHED)
    assert site.matching()["matched"] == 1


@pytest.mark.parametrize("kind", ["site", "labelling_site"])
def test_two_of_one_client_ten_milliseconds_apart(request: pytest.FixtureRequest, kind: str) -> None:
    """Each has its own tag, or none where two could be meant; never the other's."""
    site: Site = request.getfixturevalue(kind)
    outcomes: Counter[str] = Counter()
    downloads = []
    for round_ in range(REPEATED):
        tags = (PRODUCTION, ANALYSIS) if round_ % 2 else (ANALYSIS, PRODUCTION)
        pair = [site.download(tag) for tag in tags]
        began = time.monotonic()
        for number, download in enumerate(pair):
            time.sleep(max(0.0, began + number * APART - time.monotonic()))
            download.tell()
            time.sleep(REDIRECT_SECONDS[round_ % len(REDIRECT_SECONDS)])
            download.connect()
        site.agent.wait_for(lambda records: sum(one.state == "start" for one in records) == 2, "both starts")
        for download in pair:
            download.send(20_000)
            downloads.append((download.ports, download.tag))
            download.end()
    seen = site.tags()
    changed = 0
    for ports, tag in downloads:
        *earlier, said = seen[ports]
        outcomes["right" if said == tag else "in doubt" if said is None else "wrong"] += 1
        changed += set(earlier) != {said}
    matching = site.matching()
    print(f"{dict(outcomes)} of {2 * REPEATED}, {changed} of them not at once, {matching}")
    assert outcomes["wrong"] == 0
    assert (outcomes["right"], outcomes["in doubt"]) == (matching["matched"], matching["ambiguous"])
    assert outcomes["right"] - changed >= 0.99 * 2 * REPEATED
