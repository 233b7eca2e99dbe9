"""Third-party copies between alice and bob, arranged by a client on bob: both storages tell of the same connections."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.netns.conftest import ALICE, BOB
from tests.xrootd.clients import curl, xrdcp
from tests.xrootd.conftest import Site
from tests.xrootd.host import Record
from tests.xrootd.moved import ADDRESSES, TAG, check_marked, content, one, sent

OCTETS = 48_000_123
OTHER = 206
BOTH = pytest.mark.parametrize("family", ["ipv6", "ipv4"])


def copy(site: Site, to: str, *headers: str) -> None:
    """Ask a server for a copy."""
    options = [option for header in headers for option in ("-H", header)]
    said = curl(site.pair.bob, site.authority, "-X", "COPY", *options, to)
    assert "success" in said, said


def ends_of(records: list[Record]) -> set[tuple[str, int, str, int]]:
    return {record.ends for record in records}


@BOTH
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_pull_by_http(site: Site, family: str, scheme: str) -> None:
    alice, bob = ADDRESSES[family]
    site.bob.server.put("origin", content(OCTETS))
    source = site.bob.server.url(scheme, bob, "origin")
    copy(site, site.alice.server.url("https", alice, "pulled"), f"Source: {source}", f"SciTag: {TAG}", "Overwrite: T")
    assert (site.alice.server.root / "pulled").read_bytes() == content(OCTETS)
    active_start, active_end = one(site.alice.agent)
    passive_start, passive_end = one(site.bob.agent)
    assert active_start.ends == passive_start.ends
    assert (active_start.src, active_start.src_port, active_start.dst) == (bob, 8443, alice)
    assert active_start.scitag == passive_start.scitag == TAG
    assert active_end.octets == passive_end.octets == (OCTETS, 0)
    # To the passive side it is a request like any other.
    assert (active_end.application, passive_end.application) == ("xrootd-tpc", "xrootd-http")
    check_marked(sent(site), active_start, TAG)


@BOTH
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_push_by_http(site: Site, family: str, scheme: str) -> None:
    alice, bob = ADDRESSES[family]
    site.alice.server.put("pushed", content(OCTETS))
    destination = site.bob.server.url(scheme, bob, "arrived")
    (site.bob.server.root / "arrived").unlink(missing_ok=True)
    copy(site, site.alice.server.url("https", alice, "pushed"), f"Destination: {destination}", f"SciTag: {TAG}")
    assert (site.bob.server.root / "arrived").read_bytes() == content(OCTETS)
    active_start, active_end = one(site.alice.agent)
    passive_start, passive_end = one(site.bob.agent)
    assert active_start.ends == passive_start.ends
    assert (active_start.src, active_start.dst, active_start.dst_port) == (alice, bob, 8443)
    assert active_start.scitag == passive_start.scitag == TAG
    assert active_end.octets == passive_end.octets == (OCTETS, 0)
    # To the passive side it is a request like any other.
    assert (active_end.application, passive_end.application) == ("xrootd-tpc", "xrootd-http")
    check_marked(sent(site), active_start, TAG)


def test_pull_by_several_connections(site: Site) -> None:
    octets = 4 * OCTETS
    site.bob.server.put("origin", content(octets))
    copy(
        site,
        site.alice.server.url("https", ALICE, "pulled"),
        f"Source: {site.bob.server.url('http', BOB, 'origin')}",
        f"SciTag: {TAG}",
        "X-Number-Of-Streams: 4",
        "Overwrite: T",
    )
    assert (site.alice.server.root / "pulled").read_bytes() == content(octets)
    (records,) = site.alice.agent.transfers(1)
    starts = [record for record in records if record.state == "start"]
    assert len(starts) >= 4
    assert {record.scitag for record in records} == {TAG}
    assert sum(record.octets[0] for record in records if record.state == "end") == octets
    # The passive side sees a request for each part of the file.
    passive = site.bob.agent.wait_for(
        lambda found: sum(one.octets[0] for one in found if one.state == "end") >= octets, "the parts"
    )
    assert sum(one.octets[0] for one in passive if one.state == "end") == octets
    assert ends_of(passive) <= ends_of(starts)
    assert {record.scitag for record in passive} == {TAG}
    seen = sent(site)
    for ends in ends_of(passive):
        start = next(record for record in starts if record.ends == ends)
        check_marked(seen, start, TAG)


def test_copies_at_once_between_the_same_hosts_keep_their_tags(site: Site) -> None:
    site.bob.server.put("origin", content(OCTETS))
    tags = [TAG, OTHER] * 4

    def pull(number: int) -> None:
        to = site.alice.server.url("https", ALICE, f"at-once{number}")
        source = site.bob.server.url("http", BOB, "origin")
        copy(site, to, f"Source: {source}", f"SciTag: {tags[number]}", "Overwrite: T")

    with ThreadPoolExecutor(len(tags)) as pool:
        list(pool.map(pull, range(len(tags))))
    active = site.alice.agent.transfers(len(tags))
    passive = site.bob.agent.transfers(len(tags))
    assert sorted(parts[0].scitag for parts in active) == sorted(tags)
    # What the active side says of each connection is what the passive side was told in its request.
    assert {parts[0].ends: parts[0].scitag for parts in active} == {parts[0].ends: parts[0].scitag for parts in passive}
    assert all(parts[1].octets == (OCTETS, 0) for parts in active + passive)


def test_a_tag_by_the_rules_goes_along(site: Site) -> None:
    site.bob.server.put("origin", content(1000))
    (site.alice.server.root / "mapped").mkdir(exist_ok=True)
    subprocess.run(["chown", "xrootd", site.alice.server.root / "mapped"], check=True)
    source = site.bob.server.url("http", BOB, "origin")
    copy(site, site.alice.server.url("https", ALICE, "mapped/pulled"), f"Source: {source}", "Overwrite: T")
    assert one(site.alice.agent)[0].scitag == one(site.bob.agent)[0].scitag == 206


@BOTH
def test_copy_by_root(site: Site, family: str, tmp_path: Path) -> None:
    alice, bob = ADDRESSES[family]
    site.alice.server.put("origin", content(OCTETS))
    (site.bob.server.root / "copied").unlink(missing_ok=True)
    tag = f"?scitag.flow={TAG}"
    xrdcp(
        site.pair.bob,
        "--tpc",
        "only",
        site.alice.server.url("root", alice, f"origin{tag}"),
        site.bob.server.url("root", bob, f"copied{tag}"),
    )
    assert (site.bob.server.root / "copied").read_bytes() == content(OCTETS)
    # The copy is moved by a program of bob's, which has streams of its own.
    (records,) = site.alice.agent.transfers(1)
    start = records[0]
    assert (start.src, start.src_port, start.dst) == (alice, 1094, bob)
    assert {record.scitag for record in records} == {TAG}
    assert max(record.octets for record in records if record.state == "end") == (OCTETS, 0)
    assert {record.application for record in records} == {"xrootd-tpc"}
    seen = sent(site)
    for record in records:
        if record.state == "start":
            check_marked(seen, record, TAG)
