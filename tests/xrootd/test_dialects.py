"""One transfer as every storage's dialect tells it, recorded, beside what our plug-in for xrootd tells of the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from scitags_agent.sources.named_pipe import LineBuffer, rescued
from scitags_agent.table import FlowTable
from scitags_core import firefly
from scitags_core.errors import FireflyError, FlowEventError
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.flow_json import decode_events
from scitags_core.pipe_line import parse_line
from scitags_core.syslog import behind_old_header
from scitags_core.tag import decode
from tests.agent.test_firefly_source import heard
from tests.core.shared_spec import spec_file
from tests.netns.conftest import ALICE
from tests.xrootd.clients import curl, xrdcp
from tests.xrootd.conftest import Site
from tests.xrootd.moved import TAG, content, one

OCTETS = 3_000_000
NOW = datetime(2026, 11, 28, 5, tzinfo=UTC)

# By xrootd 5.5.3 itself (xrootd.pmark), whose usage is that of the connection.
_XROOTD = (
    '<134>1 - host xrootd - firefly-json - {{"version":1,"flow-lifecycle":{{"state":"{state}","current-time":"{now}",'
    '"start-time":"2026-11-28T04:07:{began}+00:00"{end}}},"usage":{{"received":{received},"sent":{sent}}},'
    '"netlink":{{"rtt":0.217}},"context":{{"experiment-id":2,"activity-id":15,"application":"xrdcp"}},"flow-id":'
    '{{"afi":"ipv6","src-ip":"2001:db8::1","dst-ip":"2001:db8::2","protocol":"tcp","src-port":1094,"dst-port":{port}}}}}'
)


def _xrootd(port: int, began: str, ended: str, *usages: tuple[int, int]) -> list[bytes]:
    first, last = f"2026-11-28T04:07:{began}+00:00", f"2026-11-28T04:07:{ended}+00:00"
    return [
        _XROOTD.format(state=state, now=now, began=began, end=end, received=usage[0], sent=usage[1], port=port).encode()
        for state, now, end, usage in zip(
            ("start", "end"), (first, last), ("", f',"end-time":"{last}"'), usages, strict=True
        )
    ]


XROOTD = {
    "down": _xrootd(40370, "41.967446", "41.996631", (189, 56), (240, 3003161)),
    "up": _xrootd(40376, "42.753189", "42.804244", (248, 116), (3003229, 251)),
}
# By StoRM WebDAV 1.8.1, and by the nginx before it, whose end has activity and experiment the other way round.
_DOWN = b"[fd00:1:0:0:0:0:0:1] 8085 [fd00:1:0:0:0:0:0:2] 43720"
_UP = b"[fd00:1:0:0:0:0:0:2] 43720 [fd00:1:0:0:0:0:0:1] 8085"
STORM = {
    way: [b"start tcp " + ends + b" 2 15\n", b"end tcp " + ends + b" 2 15\n"]
    for way, ends in (("down", _DOWN), ("up", _UP))
}
STORMS_NGINX = {"down": [STORM["down"][0], b"end tcp fd00:1::1 8085 fd00:1::2 43720 15 2\n"]}
# As nginx writes with our lines (tests/http has the real one).
_WEB = (
    b'"id":"7.3.1","application":"nginx","scitag":143,'
    b'"src":"fd00:1::1","src_port":8443,"dst":"fd00:1::2","dst_port":43720'
)
WEB_SERVER = {
    "down": [
        b'{"state":"start",' + _WEB + b"}",
        b'<190>Nov 28 04:07:45 scitags: {"state":"end",' + _WEB + b',"usage":{"sent":3000000}}',
    ]
}


def dcache(case: str) -> list[bytes]:
    """By dCache 12.0.1, what went to its pool.firefly.destination."""
    lines = [line.split("\t") for line in spec_file("recordings/dcache.tsv").read_text().splitlines()]
    return [line[3].encode() for line in lines if line[0] == case and line[2].endswith("to collector")]


class Story(NamedTuple):
    """What matters of a transfer. octets: what its source sent; None where the storage does not say."""

    began_as: int
    ended_as: int
    supplier: str
    octets: int | None


def of_fireflies(datagrams: Sequence[bytes]) -> list[FlowEvent]:
    sink = heard(datagrams, only_local=False)
    assert not sink.refused
    return sink.events


def of_lines(lines: Sequence[bytes]) -> list[FlowEvent]:
    return [parse_line(line, NOW) for line in lines]


def of_messages(messages: Sequence[bytes]) -> list[FlowEvent]:
    return [event for one in messages for event in decode_events(behind_old_header(one))[0]]


def story(events: Sequence[FlowEvent], storages: str) -> Story:
    """What the table of flows, and with it every backend, makes of a start and an end."""
    table = FlowTable(max_users=8, idle=timedelta(hours=1))
    start, end = (change for event in events for change in table.apply(event, NOW))
    assert (start.event.state, end.event.state, start.users, end.users) == (FlowState.START, FlowState.END, 1, 0)
    assert start.event.key == end.event.key
    assert start.event.start_time == end.event.start_time
    assert start.event.start_time is not None
    assert (start.mark, end.mark) == (start.event.tag, None)
    told = firefly.turned(end.event) if end.event.is_reversed else end.event
    supplier = "storage" if told.key.src == storages else "client"
    began_as, ended_as = (one.event.tag.experiment << 6 | one.event.tag.activity for one in (start, end))
    return Story(began_as, ended_as, supplier, told.usage.sent if told.usage else None)


@pytest.fixture(scope="module")
def by_our_plugin(whole_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Story]:
    """The same file, moved the same way with the same tag, through a real xrootd with our plug-in."""
    site, directory = whole_site, tmp_path_factory.mktemp("dialects")
    (directory / "file").write_bytes(content(OCTETS))

    def move(scheme: str, way: str) -> Story:
        site.forget()
        site.alice.server.put("down", content(OCTETS))
        url = site.alice.server.url(scheme, ALICE, f"{way}?scitag.flow={TAG}")
        from_to: list[str | Path] = [url, "/dev/null"] if way == "down" else [directory / "file", url]
        if scheme == "root":
            xrdcp(site.pair.bob, *from_to)
        else:
            curl(site.pair.bob, site.authority, *(["-o", "/dev/null", url] if way == "down" else ["-T", *from_to]))
        start, end = one(site.alice.agent)
        assert start.start_time == end.start_time
        return Story(start.scitag, end.scitag, "storage" if end.src == ALICE else "client", end.octets[0])

    return move


@pytest.mark.parametrize(
    ("case", "scheme", "way", "storage"),
    [
        ("net6-get-scitag143", "http", "down", "fd00:dc::1"),
        ("net6-get-query143", "http", "down", "fd00:dc::1"),
        ("net4-get-scitag143", "http", "down", "10.99.0.1"),
        ("net6-put-scitag143", "http", "up", "fd00:dc::1"),
        ("net4-put-scitag143", "http", "up", "10.99.0.1"),
        ("stats-net6-put-scitag143", "http", "up", "fd00:dc::1"),
        ("tpc2-pull-net6-scitag143", "http", "up", "fd00:dc::1"),
        ("xrd-net4-get-flow143", "root", "down", "10.99.0.1"),
        ("xrd-net4-put-flow143", "root", "up", "10.99.0.1"),
    ],
)
def test_dcache(by_our_plugin: Callable[[str, str], Story], case: str, scheme: str, way: str, storage: str) -> None:
    """Of a pull the other storage is the client. (One recording has another transfer's start before it.)"""
    events = [one for one in of_fireflies(dcache(case)) if storage in (one.key.src, one.key.dst)]
    assert story(events, storage) == by_our_plugin(scheme, way) == Story(TAG, TAG, supplier(way), OCTETS)


@pytest.mark.parametrize("way", ["down", "up"])
def test_xrootd_itself(by_our_plugin: Callable[[str, str], Story], way: str) -> None:
    """But for the octets of its protocol, which it counts."""
    told = story(of_fireflies(XROOTD[way]), ALICE)
    assert told.octets in range(OCTETS, OCTETS + OCTETS // 50)
    assert told._replace(octets=OCTETS) == by_our_plugin("root", way)


@pytest.mark.parametrize(
    ("way", "lines"),
    [("down", STORM["down"]), ("up", STORM["up"]), ("down", STORMS_NGINX["down"])],
    ids=["down", "up", "nginx"],
)
def test_storm(by_our_plugin: Callable[[str, str], Story], way: str, lines: list[bytes]) -> None:
    """It says nothing of octets."""
    assert story(of_lines(lines), "fd00:1::1") == by_our_plugin("http", way)._replace(octets=None)


def test_web_servers(by_our_plugin: Callable[[str, str], Story]) -> None:
    assert story(of_messages(WEB_SERVER["down"]), "fd00:1::1") == by_our_plugin("http", "down")


def supplier(way: str) -> str:
    return "storage" if way == "down" else "client"


# --- cut off ------------------------------------------------------------------------------------


def _all_of_dcache() -> list[bytes]:
    text = spec_file("recordings/dcache.tsv").read_text()
    return sorted({line.split("\t")[3].encode() for line in text.splitlines() if not line.startswith("#")})


def test_fireflies_that_were_cut_off_are_refused_at_every_octet() -> None:
    for whole in [*_all_of_dcache(), *XROOTD["down"], *XROOTD["up"]]:
        json.loads(whole[whole.index(b"{") :])
        for length in range(len(whole)):
            with pytest.raises(FireflyError) as refused:
                firefly.decode(whole[:length])
            assert str(refused.value)


@pytest.mark.parametrize("line", [*STORM["down"], *STORM["up"], *STORMS_NGINX["down"]])
def test_lines_that_were_cut_off_are_no_events_and_spoil_none(line: bytes) -> None:
    """A tag of 15 that lost its last digit reads as 1: only a line that has its end counts."""
    other = b"start tcp 2001:db8::7 1 2001:db8::8 2 3 14\n"
    for length in range(1, len(line)):
        buffer = LineBuffer()
        assert buffer.feed(line[:length]) == []
        # The writer has died, and another writes.
        (torn,) = buffer.feed(other)
        try:
            found = [parse_line(torn)]
        except FlowEventError:
            found = rescued(torn)
        assert [(event.key, event.tag) for event in found] == [
            (FlowKey.of("2001:db8::7", 1, "2001:db8::8", 2), decode(206))
        ]


@pytest.mark.parametrize("message", WEB_SERVER["down"])
def test_messages_that_were_cut_off_are_refused_at_every_octet(message: bytes) -> None:
    for length in range(len(message)):
        with pytest.raises(FlowEventError):
            decode_events(behind_old_header(message[:length]))
