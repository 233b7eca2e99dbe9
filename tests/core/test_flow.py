"""The flow model: addresses, keys, tags as reported, instants; our JSON and the line of the pipe."""

from __future__ import annotations

import ipaddress
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core import flow_json, instant, pipe_line
from scitags_core.errors import FlowEventError, InvalidValue
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage, canonical_address, check_tag, zone_of
from scitags_core.tag import UNKNOWN, Tag
from tests.core.fireflies import KEY, NOON, event, events


@pytest.mark.parametrize(
    ("text", "canonical", "zone"),
    [
        ("192.0.2.1", "192.0.2.1", ""),
        ("::ffff:192.0.2.1", "192.0.2.1", ""),
        ("::FFFF:C000:0201", "192.0.2.1", ""),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1", ""),
        ("[fd00:1:0:0:0:0:0:1]", "fd00:1::1", ""),
        ("fe80::1%eth0", "fe80::1", "eth0"),
        ("[fe80::1%eth0]", "fe80::1", "eth0"),
        ("::", "::", ""),
    ],
)
def test_addresses_have_one_spelling(text: str, canonical: str, zone: str) -> None:
    assert (canonical_address(text), zone_of(text)) == (canonical, zone)


@pytest.mark.parametrize(
    "text", ["", "[]", "host", "192.0.2.256", "192.0.2.01", "::1::", "[::1", "1.2.3.4/24", "٣.2.3.4"]
)
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(FlowEventError) as caught:
        canonical_address(text)
    assert repr(text) in str(caught.value)


@given(st.ip_addresses())
def test_any_address_is_read_in_its_long_form_too(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert canonical_address(address.exploded) == canonical_address(str(address))


def test_a_key() -> None:
    key = FlowKey.of("[2001:DB8::1]", 1094, "2001:db8::2%eth0", 0, "TCP")
    assert key == FlowKey("2001:db8::1", 1094, "2001:db8::2", 0, "tcp")
    assert (key.is_ipv6, key.is_complete, KEY.is_complete) == (True, False, True)
    assert key.reversed() == FlowKey("2001:db8::2", 0, "2001:db8::1", 1094, "tcp")
    assert str(key) == "tcp [2001:db8::1]:1094 > [2001:db8::2]:0"
    assert str(FlowKey.of("192.0.2.1", 1, "::ffff:192.0.2.2", 2, "udp")) == "udp 192.0.2.1:1 > 192.0.2.2:2"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("::1", 1, "::2", 2, "sctp"), "'sctp'"),
        (("::1", -1, "::2", 2), "port -1"),
        (("::1", 1, "::2", 65536), "port 65536"),
        (("::1", 1, "192.0.2.1", 2), "two address families"),
        (("::1", 1, "::ffff:192.0.2.1", 2), "two address families"),
    ],
)
def test_what_is_no_key(arguments: tuple[Any, ...], why: str) -> None:
    with pytest.raises(FlowEventError, match=why):
        FlowKey.of(*arguments)


@pytest.mark.parametrize("pair", [(0, 0), (0, 14), (1, 0), (1023, 63)])
def test_a_reported_tag(pair: tuple[int, int]) -> None:
    assert check_tag(*pair) == Tag(*pair)
    assert event(tag=Tag(*pair)).is_unknown is (pair[0] == 0)


@pytest.mark.parametrize(
    "pair", [(-1, 1), (1024, 1), (1, -1), (1, 64), ("1", 1), (1, None), (True, 1), (1, False), (1.0, 1)]
)
def test_what_is_no_reported_tag(pair: tuple[Any, Any]) -> None:
    with pytest.raises(FlowEventError, match=r"experiment|activity"):
        check_tag(*pair)


# --- instants -----------------------------------------------------------------------------------


@given(st.datetimes(timezones=st.just(UTC)))
def test_any_instant_round_trips(moment: datetime) -> None:
    assert instant.parse_instant(instant.format_instant(moment)) == moment


@given(st.text(max_size=40))
def test_any_text_is_an_instant_or_is_refused(text: str) -> None:
    try:
        found = instant.parse_instant(text)
    except InvalidValue:
        return
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    ["", "2026-01-31", "2026-01-31T12", "2026-01-31T12:00", "20260131T120000", "12:00:00", "2026-01-31T12:00:60Z"],
)
def test_what_is_no_instant(text: str) -> None:
    with pytest.raises(InvalidValue, match="ISO 8601"):
        instant.parse_instant(text)


def test_a_date_ends_with_its_last_microsecond() -> None:
    assert instant.end_of_day("2026-01-31") == datetime(2026, 1, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert instant.end_of_day("2026-01-31T12:00:00Z") == NOON
    for text in ("", "today", "2026-02-30", "31.1.2026"):
        with pytest.raises(InvalidValue, match="not a date"):
            instant.end_of_day(text)


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(0), "0 seconds"),
        (timedelta(seconds=1), "1 second"),
        (timedelta(seconds=119), "1 minute"),
        (timedelta(hours=47), "1 day"),
        (timedelta(days=445), "445 days"),
        (timedelta(seconds=-5), "0 seconds"),
    ],
)
def test_ages(age: timedelta, text: str) -> None:
    assert instant.age_text(age) == text


# --- our JSON -----------------------------------------------------------------------------------


EVENT = {"state": "start", "src": "2001:db8::1", "src_port": 1094, "dst": "2001:db8::2", "dst_port": 43720}


def decoded(**members: object) -> FlowEvent:
    return flow_json.decode_event({name: value for name, value in (EVENT | members).items() if value is not None})


@pytest.mark.parametrize(
    ("members", "changes"),
    [
        ({"scitag": 143}, {}),
        ({"experiment": 2, "activity": 15}, {}),
        ({"scitag": 0}, {"tag": UNKNOWN}),
        ({"experiment": 0, "activity": 0}, {"tag": UNKNOWN}),
        ({"experiment": 1, "activity": 0}, {"tag": Tag(1, 0)}),
        ({"scitag": 143, "state": "ongoing"}, {"state": FlowState.ONGOING}),
        ({"scitag": 143, "start_time": "2026-01-31T13:00:00+01:00"}, {"start_time": NOON}),
        ({"scitag": 143, "end_time": "2026-01-31T12:00:00Z"}, {"end_time": NOON}),
        ({"scitag": 143, "usage": {"sent": 7}}, {"usage": Usage(sent=7)}),
        ({"scitag": 143, "application": "x", "id": "t"}, {"application": "x", "transfer_id": "t"}),
        ({"scitag": 143, "src": "[2001:DB8::1]", "dst": "2001:db8::2%eth0"}, {"zone": "eth0"}),
    ],
)
def test_our_json(members: dict[str, Any], changes: dict[str, Any]) -> None:
    assert decoded(**members) == msgspec.structs.replace(event(start_time=None), **changes)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({}, "neither scitag nor experiment"),
        ({"experiment": 2}, "neither scitag nor experiment"),
        ({"scitag": 143, "experiment": 2}, "both scitag and experiment"),
        ({"scitag": 64}, "64"),
        ({"scitag": 196664}, "flow label"),
        ({"scitag": "143"}, "scitag"),
        ({"experiment": 1024, "activity": 1}, "experiment 1024"),
        ({"scitag": 143, "sci_tag": 1}, "sci_tag"),
        ({"scitag": 143, "state": "begin"}, "begin"),
        ({"scitag": 143, "dst_port": 65536}, "65536"),
        ({"scitag": 143, "dst": "h"}, "'h'"),
        ({"scitag": 143, "start_time": "now"}, "start_time 'now'"),
        ({"scitag": 143, "usage": {"sent": -1}}, "usage sent -1 is outside"),
        ({"scitag": 143, "usage": {"received": 1 << 64}}, "usage received 18446744073709551616 is outside"),
    ],
)
def test_what_is_no_event(members: dict[str, Any], why: str) -> None:
    with pytest.raises(FlowEventError, match=why):
        decoded(**members)


def test_one_bad_event_costs_no_other() -> None:
    good = EVENT | {"scitag": 143}
    found, wrong = flow_json.decode_events(json.dumps([good, EVENT, 7, good]).encode())
    assert len(found) == 2
    assert len(wrong) == 2


@given(st.binary(max_size=60))
def test_any_octets_are_json_or_are_refused(octets: bytes) -> None:
    try:
        found, wrong = flow_json.decode_events(octets)
    except FlowEventError:
        return
    assert found == []
    assert wrong or octets.strip() == b"[]"


@given(events(), st.text(max_size=10), st.sampled_from(["", "eth0"]))
def test_an_event_round_trips_through_our_json(sent: FlowEvent, transfer_id: str, zone: str) -> None:
    zone = zone if sent.key.is_ipv6 else ""
    given_event = msgspec.structs.replace(sent, transfer_id=transfer_id, zone=zone, extra={})
    line = flow_json.encode_event(given_event)
    assert b"\n" not in line
    assert flow_json.decode_event(json.loads(line)) == given_event


def test_the_schema_of_our_json_knows_every_member() -> None:
    (definition,) = (one for name, one in flow_json.schema()["$defs"].items() if name == "FlowEventJson")
    assert set(definition["properties"]) == {*EVENT, "protocol", "scitag", "experiment", "activity", "start_time",
                                             "end_time", "application", "usage", "id"}  # fmt: skip
    assert definition["additionalProperties"] is False


# --- the line of the pipe -----------------------------------------------------------------------


LINES = [
    (b"start tcp 2001:db8::1 1094 2001:db8::2 43720 2 15\n", {}),
    (b"START TCP [2001:db8:0:0:0:0:0:1] 1094 [2001:db8:0:0:0:0:0:2] 43720 2 15", {}),
    (b"  End\ttcp  2001:db8::1 1094 2001:db8::2 43720 2 15 \r\n", {"state": FlowState.END}),
    (b"start tcp 2001:db8::1 1094 2001:db8::2%eth0 43720 0 0\n", {"tag": UNKNOWN, "zone": "eth0"}),
]


@pytest.mark.parametrize(("line", "changes"), LINES)
def test_lines(line: bytes, changes: dict[str, Any]) -> None:
    assert pipe_line.parse_line(line) == msgspec.structs.replace(event(start_time=None), **changes)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"start tcp ::1 1 ::2 2 2",
        b"start tcp ::1 1 ::2 2 2 15 16",
        b"ongoing tcp ::1 1 ::2 2 2 15",
        b"start sctp ::1 1 ::2 2 2 15",
        b"start tcp h 1 ::2 2 2 15",
        b"start tcp ::1 x ::2 2 2 15",
        b"start tcp ::1 -1 ::2 2 2 15",
        b"start tcp ::1 1 ::2 65536 2 15",
        b"start tcp ::1 1 ::2 2 1024 15",
        b"start tcp ::1 1 ::2 2 2 64",
        b"start tcp ::1 1 ::2 2 2 1.5",
        b"st\xffrt tcp ::1 1 ::2 2 2 15",
        b"start tcp \xff 1 ::2 2 2 15",
        b"start tcp ::1 1 ::2 2 2 " + b"9" * 5000,
    ],
)
def test_lines_that_say_nothing(line: bytes) -> None:
    with pytest.raises(FlowEventError):
        pipe_line.parse_line(line)


@pytest.mark.parametrize(
    ("line", "tag"),
    [
        (b"end tcp ::1 1 ::2 2 15 2", Tag(15, 2)),  # which is which only the start can tell
        (b"end tcp ::1 1 ::2 2 15 64", Tag(64, 15)),
        (b"end tcp ::1 1 ::2 2 0 1023", Tag(1023, 0)),
        (b"end tcp ::1 1 ::2 2 64 15", Tag(64, 15)),
    ],
)
def test_an_end_whose_experiment_stands_where_the_activity_belongs(line: bytes, tag: Tag) -> None:
    assert pipe_line.parse_line(line).tag == tag


@pytest.mark.parametrize("line", [b"end tcp ::1 1 ::2 2 64 64", b"end tcp ::1 1 ::2 2 2 1024"])
def test_an_end_whose_numbers_fit_in_no_order(line: bytes) -> None:
    with pytest.raises(FlowEventError):
        pipe_line.parse_line(line)


def test_a_reader_takes_lines_as_they_come_and_asks_about_those_that_are_none() -> None:
    storm = b"tcp [2001:db8:0:0:0:0:0:1] 1094 [2001:db8:0:0:0:0:0:2] 43720 2 15"
    swapped = b"tcp 2001:db8::1 1094 2001:db8::2 43720 15 64"
    lines = [b"start " + storm, b"start " + b"tcp ::1  1 ::2 2 2 15", b"end " + storm, b"end " + storm, b"END " + storm]
    lines += [b"end " + swapped, b"end " + swapped, b"start  " + storm, b"end\t" + storm, b"end " + storm + b" "]
    asked: list[tuple[bytes, str]] = []

    def mend(line: bytes, error: FlowEventError) -> list[FlowEvent]:
        asked.append((line, str(error)))
        return [event()]

    reader = pipe_line.LineReader()
    assert reader.read(lines, NOON, mend) == [pipe_line.parse_line(line, NOON) for line in lines]
    assert not asked
    # The start of the first swapped line would be no event.
    found = reader.read([lines[0], b"start " + swapped, lines[2], b"end"], NOON, mend)
    assert [one.state for one in found] == [FlowState.START, FlowState.START, FlowState.END, FlowState.START]
    assert [line for line, _ in asked] == [b"start " + swapped, b"end"]
    assert found[2] == pipe_line.parse_line(lines[2], NOON)


@given(st.binary(max_size=80))
def test_any_octets_are_a_line_or_are_refused(octets: bytes) -> None:
    try:
        found = pipe_line.parse_line(octets)
    except FlowEventError:
        return
    # hypothesis does make up a whole line now and then.
    assert pipe_line.parse_line(pipe_line.format_line(found)).key == found.key


@given(events())
def test_an_event_round_trips_through_a_line(sent: FlowEvent) -> None:
    if sent.state is FlowState.ONGOING:
        with pytest.raises(FlowEventError, match="ongoing"):
            pipe_line.format_line(sent)
        return
    found = pipe_line.parse_line(pipe_line.format_line(sent))
    assert (found.state, found.key, found.tag) == (sent.state, sent.key, sent.tag)
