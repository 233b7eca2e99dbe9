"""Series and picture: every octet is drawn once, under its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_collector import chart
from scitags_collector.observation import Observation as Seen
from scitags_collector.packet import Packet
from scitags_collector.report import as_json
from scitags_core import firefly, label
from scitags_core.cli.names import describe
from scitags_core.cli.output import json_line
from scitags_core.errors import FlowEventError
from scitags_core.flow import FlowKey, FlowState
from scitags_core.registry_client import built_in
from scitags_core.tag import Tag
from scitags_demo import observer, picture, series
from scitags_demo.plan import make_plan
from tests.demo.seen import observation_of, records_of

LOADED = built_in()
REGISTRY = LOADED.registry
ATLAS, CMS = Tag(2, 15), Tag(3, 12)
SECOND = 10**9
FIREFLY = (
    b'<134>1 2026-01-01T00:00:00.000000Z west scitags-agent - firefly-json - {"version":1,"flow-lifecycle":'
    b'{"state":"start","current-time":"2026-01-01T00:00:00Z","start-time":"2026-01-01T00:00:00Z"},'
    b'"flow-id":{"afi":"ipv6","src-ip":"2001:db8::1","dst-ip":"2001:db8::2","protocol":"tcp","src-port":20000,'
    b'"dst-port":1094},"context":{"experiment-id":2,"activity-id":15,"application":"x"}}'
)
ENDPOINTS = bytes.fromhex("20010db800000000000000000000000120010db8000000000000000000000002")


def packet(flow_label: int, octets: int, *, payload: bytes = b"") -> Packet:
    protocol, ports = (17, b"\x10\x00\x29\x12") if payload else (6, (20000).to_bytes(2) + (1094).to_bytes(2))
    return Packet(6, protocol, ENDPOINTS, ports, octets, flow_label, 0, None, payload)


def observed(packets: list[tuple[float, Packet]]) -> observer.Observation:
    """What `scitags observe --json` says of these packets, as the demonstration reads it."""
    seen = Seen(REGISTRY, bucket=0.25)
    for seconds, one in packets:
        seen.add(round(seconds * SECOND), one)
    return observer.parse(json_line(as_json(seen, describe(LOADED), 3)).encode())


def test_an_observers_report_is_read() -> None:
    atlas = label.encode(*ATLAS, 5)
    found = observed(
        [(1000.1, packet(atlas, 1500)), (1000.2, packet(0x00001, 60)), (1000.3, packet(7, 400, payload=FIREFLY))]
    )
    key = FlowKey.of("2001:db8::1", 20000, "2001:db8::2", 1094)
    flow = found.flows[key]
    assert (flow.packets, flow.octets) == (2, 1560)
    assert (flow.packets_with(ATLAS), flow.octets_with(ATLAS)) == (1, 1500)
    assert [(one.key, one.tag, one.state, one.application) for one in found.announcements] == [
        (key, ATLAS, FlowState.START, "x")
    ]
    assert found.dropped == 3
    assert found.timeline.seconds == 0.25
    assert found.timeline.octets[1000.0] == {ATLAS: 1500, None: 60}
    assert firefly.PORT == 10514


@pytest.mark.parametrize("document", [b"", b"{}", b"[]", b'{"dropped": "none"}'])
def test_what_is_no_report_is_refused(document: bytes) -> None:
    with pytest.raises(FlowEventError, match="no report of an observer"):
        observer.parse(document)


@given(st.lists(st.tuples(st.integers(0, 39), st.sampled_from([ATLAS, CMS, None]), st.integers(60, 1500)), max_size=60))
def test_every_octet_is_in_the_series(packets: list[tuple[int, Tag | None, int]]) -> None:
    found = observed(
        [(1000 + at / 4, packet(label.encode(*tag, 3) if tag else 0, octets)) for at, tag, octets in packets]
    )
    shape = series.from_labels(found)
    for tag in (ATLAS, CMS, None):
        sent = sum(octets for _, one, octets in packets if one == tag)
        assert (shape.megabytes(tag) if tag in shape.rates else 0) == pytest.approx(sent / 1e6)


@given(st.integers(0, 1000))
def test_every_octet_is_in_the_series_by_fireflies(seed: int) -> None:
    records = records_of(make_plan(REGISTRY, seed=seed, seconds=10))
    observation = observation_of(records, marking=False)
    shape = series.from_fireflies(observation)
    drawn = sum(shape.megabytes(tag) for tag in shape.rates)
    assert drawn == pytest.approx(sum(flow.octets for flow in observation.flows.values()) / 1e6)
    assert shape.rates.keys() == {one.marks[0].tag for one in records}


def test_nothing_seen_makes_no_series() -> None:
    nothing = observed([])
    assert series.from_labels(nothing).rates == {}
    assert series.from_fireflies(nothing).rates == {}


def shape_of(*tags: Tag | None) -> series.Series:
    rates = {tag: [float(position + 1)] * 8 for position, tag in enumerate(tags)}
    return series.Series(0.25, rates, by_label=True)


def test_experiments_stand_together_and_the_untagged_on_top() -> None:
    shape = shape_of(None, Tag(2, 15), Tag(3, 12), Tag(2, 16))
    # ATLAS moves 2 + 4, CMS 3.
    assert picture.order(shape) == [Tag(2, 16), Tag(2, 15), Tag(3, 12), None]


def test_no_two_colours_are_the_same() -> None:
    tags = [*(Tag(experiment, activity) for experiment in range(1, 9) for activity in range(1, 5)), None]
    found = chart.colours(tags)
    assert len(set(found)) == len(tags)
    assert found[-1] == chart.UNTAGGED_COLOUR
    assert chart.colours(tags[:4]) == found[:4]


@pytest.mark.parametrize("shape", [shape_of(None, ATLAS, CMS), series.Series(0.25, {}, by_label=False)])
def test_the_picture_is_drawn(shape: series.Series, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    png, svg = picture.draw(shape, REGISTRY, tmp_path / "new" / "traffic")
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    assert png.stat().st_size > 10_000
    text = svg.read_text()
    assert text.startswith("<?xml")
    for name in ("time (s)", "traffic (Mbit/s)", *(["atlas", "Production Input", "no tag"] if shape.rates else [])):
        assert name in text
