"""Every way in which clients move files: what the agent is told, to the octet, and what the packets bear."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from scitags_core.tag import decode
from tests.netns.conftest import ALICE, BOB
from tests.xrootd.clients import XRDCP, curl, logged, run, xrdcp
from tests.xrootd.conftest import Site
from tests.xrootd.moved import ADDRESSES, TAG, check_marked, content, in_streams, one, sent

OCTETS = 24_000_123
OTHER = 206
BOTH = pytest.mark.parametrize("family", ["ipv6", "ipv4"])
UNREADABLE = ["64", "65536", "313x", "-5", "", "%31%34%33", "99999999999999999999", "0x8f"]


@BOTH
def test_xrdcp_down(site: Site, family: str, tmp_path: Path) -> None:
    address, client = ADDRESSES[family]
    site.alice.server.put("down", content(OCTETS))
    xrdcp(site.pair.bob, site.alice.server.url("root", address, f"down?scitag.flow={TAG}"), tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content(OCTETS)
    start, end = one(site.alice.agent)
    assert (start.src, start.src_port, start.dst) == (address, 1094, client)
    assert start.scitag == end.scitag == TAG
    assert end.octets == (OCTETS, 0)
    check_marked(sent(site), start, TAG)


@BOTH
def test_xrdcp_up(site: Site, family: str, tmp_path: Path) -> None:
    address, client = ADDRESSES[family]
    (tmp_path / "up").write_bytes(content(OCTETS))
    xrdcp(site.pair.bob, tmp_path / "up", site.alice.server.url("root", address, f"up?scitag.flow={TAG}"))
    assert (site.alice.server.root / "up").read_bytes() == content(OCTETS)
    start, end = one(site.alice.agent)
    assert (start.src, start.dst, start.dst_port) == (client, address, 1094)
    assert start.scitag == TAG
    assert end.octets == (OCTETS, 0)
    check_marked(sent(site), start, TAG, reverse=True)


@BOTH
@pytest.mark.parametrize("upload", [False, True], ids=["down", "up"])
def test_xrdcp_with_four_streams_more(site: Site, family: str, upload: bool, tmp_path: Path) -> None:
    address, client = ADDRESSES[family]
    octets, file = 3 * OCTETS, tmp_path / "streams"
    url = site.alice.server.url("root", address, f"streams?scitag.flow={TAG}")
    if upload:
        file.write_bytes(content(octets))
    else:
        site.alice.server.put("streams", content(octets))
    ends_of_it: list[str | Path] = [file, url] if upload else [url, file]
    log = tmp_path / "log"
    # At full speed all may have gone by the first stream before the client has bound the others.
    command = logged(log, [*XRDCP, "--streams", "4", "--xrate", "60m", *ends_of_it])
    connections, records = in_streams(site, log, lambda: run(site.pair.bob, command))
    starts = [record for record in records if record.state == "start"]
    ends = [record for record in records if record.state == "end"]
    assert len(starts) == connections
    assert {(record.src, record.dst) for record in starts} == {(client, address) if upload else (address, client)}
    assert {record.scitag for record in records} == {TAG}
    assert sorted(end.octets for end in ends) == [(0, 0)] * (len(starts) - 1) + [(octets, 0)]
    seen = sent(site)
    for start in starts:
        check_marked(seen, start, TAG, reverse=upload)


def test_three_files_at_once_on_one_connection(site: Site, tmp_path: Path) -> None:
    tags, sizes = (TAG, OTHER, 65), (OCTETS, 1, 0)
    urls = []
    for number, (tag, size) in enumerate(zip(tags, sizes, strict=True)):
        site.alice.server.put(f"file{number}", content(size))
        urls.append(site.alice.server.url("root", ALICE, f"file{number}?scitag.flow={tag}"))
    xrdcp(site.pair.bob, "--parallel", "3", *urls, tmp_path)
    transfers = site.alice.agent.transfers(3)
    assert {transfer[0].ends for transfer in transfers} == {transfers[0][0].ends}
    moved = {transfer[0].scitag: transfer[1].octets for transfer in transfers}
    assert moved == {tag: (size, 0) for tag, size in zip(tags, sizes, strict=True)}


@BOTH
def test_a_client_that_is_killed(site: Site, family: str) -> None:
    address, client = ADDRESSES[family]
    path = site.alice.server.put("long", b"")
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    url = site.alice.server.url("root", address, f"long?scitag.flow={TAG}")
    process = site.pair.bob.popen([*XRDCP, "--xrate", "20m", url, "/dev/null"], stderr=subprocess.DEVNULL)
    begun = site.alice.agent.wait_for(bool, "a start")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    (end,) = site.alice.agent.wait_for(bool, "an end")
    assert (begun[0].state, end.state) == ("start", "end")
    assert (end.ends, end.scitag, end.id) == (begun[0].ends, TAG, begun[0].id)
    assert end.dst == client
    assert 0 < end.octets[0] < 1 << 30


@BOTH
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_curl_get(site: Site, family: str, scheme: str, tmp_path: Path) -> None:
    address, client = ADDRESSES[family]
    site.alice.server.put("get", content(OCTETS))
    url = site.alice.server.url(scheme, address, "get")
    curl(site.pair.bob, site.authority, "-H", f"SciTag: {TAG}", "-o", tmp_path / "get", url)
    assert (tmp_path / "get").read_bytes() == content(OCTETS)
    start, end = one(site.alice.agent)
    assert (start.src, start.src_port, start.dst, start.scitag) == (address, 8443, client, TAG)
    assert end.octets == (OCTETS, 0)
    check_marked(sent(site), start, TAG)


@BOTH
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_curl_put(site: Site, family: str, scheme: str, tmp_path: Path) -> None:
    address, client = ADDRESSES[family]
    (tmp_path / "put").write_bytes(content(OCTETS))
    url = site.alice.server.url(scheme, address, f"put?scitag.flow={TAG}")
    curl(site.pair.bob, site.authority, "-T", tmp_path / "put", url)
    start, end = one(site.alice.agent)
    assert (start.src, start.dst, start.dst_port, start.scitag) == (client, address, 8443, TAG)
    assert end.octets == (OCTETS, 0)
    check_marked(sent(site), start, TAG, reverse=True)


def test_tags_in_turn_on_a_connection_that_is_kept_alive(site: Site, tmp_path: Path) -> None:
    site.alice.server.put("kept", content(OCTETS))
    url = site.alice.server.url("https", ALICE, "kept")
    requests: list[str | Path] = []
    for tag in (TAG, OTHER, TAG):
        requests += ["--next"] if requests else []
        requests += ["--globoff", "--silent", "--cacert", site.authority.certificate]
        requests += ["-H", f"SciTag: {tag}", "-o", tmp_path / "kept", url]
    curl(site.pair.bob, site.authority, *requests)
    transfers = site.alice.agent.transfers(3)
    assert [transfer[0].scitag for transfer in transfers] == [TAG, OTHER, TAG]
    assert [transfer[1].octets for transfer in transfers] == [(OCTETS, 0)] * 3
    assert len({transfer[0].ends for transfer in transfers}) == 1
    assert [transfer[0].mark for transfer in transfers] == [TAG, OTHER, TAG]
    seen = sent(site)
    check_marked(seen, transfers[0][0], TAG, OTHER)
    counts = seen[transfers[0][0].src_port, transfers[0][0].dst_port]
    # The first two requests and the last: twice the file with one tag, once with the other.
    assert counts[TAG].octets > 2 * OCTETS > counts[OTHER].octets > OCTETS, counts


def test_what_the_kernel_sends_after_the_file_is_closed(site: Site) -> None:
    """The server has handed all of it over at once; the client takes it for seconds."""
    octets = 4_000_000
    site.alice.server.put("slow", content(octets))
    url = site.alice.server.url("http", ALICE, "slow")
    curl(site.pair.bob, site.authority, "--limit-rate", "2M", "-H", f"SciTag: {TAG}", "-o", "/dev/null", url)
    start, end = one(site.alice.agent)
    assert end.octets == (octets, 0)
    check_marked(sent(site), start, TAG)


def test_head_is_no_transfer(site: Site) -> None:
    site.alice.server.put("head", content(1000))
    url = site.alice.server.url("http", ALICE, "head")
    curl(site.pair.bob, site.authority, "--head", "-H", f"SciTag: {TAG}", url)
    curl(site.pair.bob, site.authority, "-H", f"SciTag: {OTHER}", "-o", "/dev/null", url)
    start, end = one(site.alice.agent)
    assert (start.scitag, end.octets) == (OTHER, (1000, 0))


def test_a_part_of_a_file(site: Site) -> None:
    site.alice.server.put("part", content(OCTETS))
    url = site.alice.server.url("http", ALICE, "part")
    curl(site.pair.bob, site.authority, "-r", "1000-1999,5000-5009", "-H", f"SciTag: {TAG}", "-o", "/dev/null", url)
    _, end = one(site.alice.agent)
    assert end.octets == (1010, 0)


def test_the_query_comes_before_the_header(site: Site) -> None:
    site.alice.server.put("both", content(10))
    url = site.alice.server.url("http", ALICE, f"both?scitag.flow={TAG}")
    curl(site.pair.bob, site.authority, "-H", f"SciTag: {OTHER}", "-o", "/dev/null", url)
    assert one(site.alice.agent)[0].scitag == TAG


@pytest.mark.parametrize("tag", [65, 1000, 65535])
def test_tags_at_the_edges(site: Site, tag: int) -> None:
    site.alice.server.put("edge", content(10))
    url = site.alice.server.url("root", ALICE, f"edge?scitag.flow={tag}")
    xrdcp(site.pair.bob, url, "/dev/null")
    start, _ = one(site.alice.agent)
    assert (start.experiment_id, start.activity_id) == decode(tag)


@pytest.mark.parametrize("tag", UNREADABLE)
def test_what_is_no_tag_is_told_as_unknown(site: Site, tag: str) -> None:
    site.alice.server.put("unknown", content(10))
    xrdcp(site.pair.bob, site.alice.server.url("root", ALICE, f"unknown?scitag.flow={tag}"), "/dev/null")
    start, end = one(site.alice.agent)
    assert (start.experiment_id, start.activity_id, start.mark) == (0, 0, None)
    assert end.octets == (10, 0)


@pytest.mark.parametrize(
    ("address", "path", "tag"),
    [
        (ALICE, "mapped/file", (3, 14)),
        (ALICE, "mapped2/file", (1, 1)),
        (ADDRESSES["ipv4"][0], "by-host/file", (3, 12)),
        (ALICE, "by-host/file", (1, 1)),
    ],
)
def test_a_transfer_without_a_tag_gets_that_of_the_rules(
    site: Site, address: str, path: str, tag: tuple[int, int]
) -> None:
    (site.alice.server.root / path).parent.mkdir(exist_ok=True)
    site.alice.server.put(path, content(10))
    (site.alice.server.root / path).parent.chmod(0o755)
    xrdcp(site.pair.bob, site.alice.server.url("root", address, path), "/dev/null")
    start, _ = one(site.alice.agent)
    assert (start.experiment_id, start.activity_id) == tag


PYTHON = """
import sys
from XRootD import client
url, octets = sys.argv[1], int(sys.argv[2])
with client.File() as file:
    status, _ = file.open(url)
    assert status.ok, status
    status, one = file.read(0, octets // 2)
    assert status.ok and len(one) == octets // 2, status
    status, parts = file.vector_read([(octets // 2, 1000), (octets - 500, 500)])
    assert status.ok, status
copies = client.CopyProcess()
copies.add_job(url, "/dev/null", force=True)
assert copies.prepare().ok
status, results = copies.run()
assert status.ok, status
"""


def test_python_bindings(site: Site) -> None:
    site.alice.server.put("python", content(OCTETS))
    url = site.alice.server.url("root", ALICE, f"python?scitag.flow={TAG}")
    run(site.pair.bob, ["/usr/bin/python3", "-c", PYTHON, url, str(OCTETS)])
    read, copied = site.alice.agent.transfers(2)
    assert read[0].scitag == copied[0].scitag == TAG
    assert read[1].octets == (OCTETS // 2 + 1500, 0)
    assert copied[1].octets == (OCTETS, 0)
    assert read[0].ends[:3] == (ALICE, 1094, BOB)
