"""Every way in which clients move files: what the agent is told, to the octet, and what the packets bear."""

from __future__ import annotations

from pathlib import Path

import pytest

from scitags_core import label
from scitags_core.tag import decode
from tests.netns.conftest import ALICE, BOB
from tests.xrootd.clients import xrdcp
from tests.xrootd.conftest import ALICE_IPV4, BOB_IPV4, Site
from tests.xrootd.host import Record

OCTETS = 24_000_000
TAG = 143
BOTH = pytest.mark.parametrize(("address", "client"), [(ALICE, BOB), (ALICE_IPV4, BOB_IPV4)], ids=["ipv6", "ipv4"])


def content(octets: int = OCTETS) -> bytes:
    return bytes(range(256)) * (octets // 256) + bytes(octets % 256)


def labels_of(site: Site, port: int, *, sent_by_port: bool = True) -> dict[int, dict[int, int]]:
    """How many packets bore which scitag (0: none), by the port of the client; of the large share, those with data."""
    found: dict[int, dict[int, int]] = {}
    for (source, destination), words in site.seen.words().items():
        near, far = (source, destination) if sent_by_port else (destination, source)
        if near != port:
            continue
        for word, count in words.items():
            bits = word & 0xFFFFF
            tag = label.decode(bits).tag if bits else None
            number = tag.experiment << 6 | tag.activity if tag else 0
            counts = found.setdefault(far, {})
            counts[number] = counts.get(number, 0) + count
    return found


def check_marked(site: Site, records: list[Record], port: int, tag: int = TAG) -> None:
    """Packets of the connections that these records name bear the tag: all with another, and most of all, none else."""
    if ":" not in records[0].src:
        return
    labels = labels_of(site, port)
    ports = {one.src_port if one.dst_port == port else one.dst_port for one in records}
    for client_port in ports:
        counts = labels[client_port]
        assert set(counts) <= {0, tag}, labels
        assert counts.get(tag, 0) > 0.5 * sum(counts.values()), labels


@BOTH
def test_xrdcp_down(site: Site, address: str, client: str, tmp_path: Path) -> None:
    site.alice.server.put("down", content())
    url = site.alice.server.url("root", address, f"down?scitag.flow={TAG}")
    xrdcp(site.pair.bob, url, tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content()
    (records,) = site.alice.agent.transfers(1)
    start, end = records
    assert (start.src, start.src_port, start.dst) == (address, 1094, client)
    assert start.scitag == end.scitag == decode(TAG).experiment << 6 | decode(TAG).activity
    assert end.octets == (OCTETS, 0)
    check_marked(site, records, 1094)
