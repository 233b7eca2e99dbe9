"""Fireflies: what we write always meets the schema; what peers write is read, in every dialect."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_core import firefly
from scitags_core.errors import FireflyError, InvalidValue
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.syslog import SyslogHeader
from scitags_core.tag import UNKNOWN, Tag
from tests.core.fireflies import KEY, NOON, event, events, message, schema_validator, wire
from tests.core.shared_spec import recordings


def body_of(datagram: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(datagram[datagram.index(b"{") :])
    return content


# --- writing ------------------------------------------------------------------------------------


def test_the_octets_of_an_end() -> None:
    later = NOON + timedelta(seconds=90, microseconds=250)
    sent = event(state=FlowState.END, end_time=later, application="storage 1.0", usage=Usage(received=1, sent=2))
    assert firefly.encode(sent, now=later, host="door.example", app="scitags-agent") == (
        b"<134>1 2026-01-31T12:01:30.000250Z door.example scitags-agent - firefly-json - "
        b'{"version":1,"flow-lifecycle":{"state":"end","current-time":"2026-01-31T12:01:30.000250Z",'
        b'"start-time":"2026-01-31T12:00:00Z","end-time":"2026-01-31T12:01:30.000250Z"},'
        b'"flow-id":{"afi":"ipv6","src-ip":"2001:db8::1","dst-ip":"2001:db8::2","protocol":"tcp",'
        b'"src-port":1094,"dst-port":43720},"context":{"experiment-id":2,"activity-id":15,'
        b'"application":"storage 1.0"},"usage":{"received":1,"sent":2}}'
    )


@given(events())
def test_written_fireflies_meet_the_schema_and_are_read_again(sent: FlowEvent) -> None:
    datagram = firefly.encode(sent, now=NOON, host="h", app="a", max_octets=firefly.MAX_DATAGRAM)
    schema_validator().validate(body_of(datagram))
    found = firefly.decode(datagram)
    assert found.header == SyslogHeader(NOON, "h", "a")
    assert found.event.key == sent.key
    assert found.event.tag == sent.tag
    assert (found.event.state, found.event.start_time) == (sent.state, sent.start_time)
    assert found.event.end_time == (sent.end_time if sent.state is FlowState.END else None)
    assert found.event.current_time == NOON
    assert found.event.application == sent.application
    assert (found.event.usage or Usage()) == (sent.usage or Usage())
    assert found.event.extra == sent.extra


@given(events(), st.text(max_size=300), st.text(max_size=60), st.integers(500, 1300))
def test_what_is_written_fits_or_is_refused(sent: FlowEvent, host: str, app: str, limit: int) -> None:
    try:
        datagram = firefly.encode(sent, now=NOON, host=host, app=app, max_octets=limit)
    except InvalidValue as error:
        assert "cannot be cut" in str(error)  # noqa: PT017  (most examples raise nothing)
        return
    assert len(datagram) <= limit
    schema_validator().validate(body_of(datagram))
    found = firefly.decode(datagram).event
    assert sent.application.startswith(found.application)
    assert found.key == sent.key


@given(
    st.lists(st.tuples(events(), st.booleans()), min_size=1, max_size=5),
    st.lists(st.integers(0, 4), max_size=12),
    st.integers(300, 1300),
)
def test_a_bundle_writes_the_same_octets(sent: list[tuple[FlowEvent, bool]], order: list[int], limit: int) -> None:
    """Whatever stands beside what; a few events, in any order and again, share their times, tags and applications."""
    told = [msgspec.structs.replace(one, usage=None, extra={}) if is_plain else one for one, is_plain in sent]
    told += [told[number % len(told)] for number in order]
    bundle = firefly.Bundle(NOON, "h", "a", limit)
    for one, written in zip(told, bundle.encode_all(told), strict=True):
        try:
            expected = firefly.encode(one, now=NOON, host="h", app="a", max_octets=limit)
        except InvalidValue as error:
            assert str(written) == str(error)  # noqa: PT017  (most examples raise nothing)
            with pytest.raises(InvalidValue):
                bundle.encode(one)
        else:
            assert written == bundle.encode(one) == expected


def test_unknown_objects_go_first_and_the_application_next() -> None:
    full = event(application="x" * 400, extra={"storage-stats": {"a": "y" * 900}})
    assert firefly.decode(firefly.encode(full, now=NOON, host="h", app="a", max_octets=9000)).event.extra == full.extra
    fitted = firefly.decode(firefly.encode(full, now=NOON, host="h", app="a")).event
    assert (fitted.extra, fitted.application) == ({}, "x" * 400)
    bare = firefly.encode(event(), now=NOON, host="h", app="a")
    short = firefly.encode(full, now=NOON, host="h", app="a", max_octets=len(bare) + 7)
    assert firefly.decode(short).event.application == "x" * 7
    assert len(firefly.encode(full, now=NOON, host="h", app="a", max_octets=len(bare))) == len(bare)
    with pytest.raises(InvalidValue, match=f"{len(bare)} octets cannot be cut to {len(bare) - 1}"):
        firefly.encode(full, now=NOON, host="h", app="a", max_octets=len(bare) - 1)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (event(key=FlowKey("2001:db8::1", 0, "2001:db8::2", 1)), "both ports"),
        (event(start_time=None), "start time"),
        (event(state=FlowState.END), "end time"),
        (event(application="\udc80"), "no Unicode"),
        (event(extra={"netlink": {"\ud800": 1}}), "no Unicode"),
    ],
)
def test_what_the_schema_cannot_say_is_refused(sent: FlowEvent, why: str) -> None:
    with pytest.raises(InvalidValue, match=why):
        firefly.encode(sent, now=NOON, host="h", app="a")


def test_netlink_is_written_as_an_object_or_not_at_all() -> None:
    for value, kept in (({"rtt": 5}, True), ([1], False), ("x", False)):
        sent = event(extra={"netlink": value, "skOps": value})
        body = body_of(firefly.encode(sent, now=NOON, host="h", app="a"))
        schema_validator().validate(body)
        assert ("netlink" in body) is kept
        assert body["skOps"] == value


def test_a_host_or_name_that_a_header_cannot_hold() -> None:
    datagram = firefly.encode(event(), now=NOON, host="a b\nü", app="")
    assert datagram.startswith(b"<134>1 2026-01-31T12:00:00.000000Z a_b__ - - firefly-json - {")
    assert firefly.decode(datagram).header == SyslogHeader(NOON, "a_b__", "")


# --- reading: the dialects ----------------------------------------------------------------------


def read(datagram: bytes) -> FlowEvent:
    return firefly.decode(datagram).event


@pytest.mark.parametrize("datagram", recordings())
def test_every_recording_of_dcache_is_read(datagram: bytes) -> None:
    found = firefly.decode(datagram)
    body = body_of(datagram)
    assert found.event.state.value == body["flow-lifecycle"]["state"]
    assert found.event.tag == (body["context"]["experiment-id"], body["context"]["activity-id"])
    assert (found.event.key.src_port, found.event.key.dst_port) == (
        body["flow-id"]["src-port"],
        body["flow-id"]["dst-port"],
    )
    assert found.event.start_time is not None
    assert (found.event.end_time is not None) is ("end-time" in body["flow-lifecycle"])
    assert (found.event.usage is not None) is bool(body.get("usage"))
    assert (found.header is not None) is datagram.startswith(b"<134>")
    assert set(found.event.extra) == set(body) - {"version", "flow-lifecycle", "flow-id", "usage", "context"}


STAMP = datetime(2022, 2, 1, 18, 54, 27, 123456, tzinfo=UTC)
HEADERS = [
    (b"<134>1 2022-02-01T18:54:27.123456789Z pool dCache - firefly-json - ", SyslogHeader(STAMP, "pool", "dCache")),
    (b"<134>1 2022-02-01T18:54:27.123456+00:00 h xrootd - firefly-json - ", SyslogHeader(STAMP, "h", "xrootd")),
    (b"<134>1 - h xrootd - firefly-json - ", SyslogHeader(None, "h", "xrootd")),
    (b"<134>1  h xrootd - firefly-json - ", SyslogHeader(None, "h", "xrootd")),
    (b"<134>1 nonsense h xrootd - firefly-json - ", SyslogHeader(None, "h", "xrootd")),
    (b"<134>1 - - - - firefly-json - ", SyslogHeader(None, "", "")),
    (b"<134>1 - h app 4711 firefly-json -", SyslogHeader(None, "h", "app")),
    (
        b"Feb  1 18:54:27 host 1 2022-02-01T18:54:27.123456+00:00 h flowd - firefly-json - ",
        SyslogHeader(STAMP, "h", "flowd"),
    ),
    (b"", None),
    (b"  ", None),
    (b"firefly-json ", None),
    (b"<134>1 - h app - another-id - ", None),
    (b"\xff\xfe\x00 ", None),
]


@pytest.mark.parametrize(("prefix", "header"), HEADERS)
def test_headers(prefix: bytes, header: SyslogHeader | None) -> None:
    found = firefly.decode(prefix + wire(message()))
    assert found.header == header
    assert found.event == event(current_time=NOON)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\0", b" \n\0"])
def test_what_a_sender_puts_behind_it(end: bytes) -> None:
    assert read(wire(message()) + end).key == KEY


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [
        ("2026-01-31T12:00:00Z", 0),
        *(
            (f"2026-01-31T12:00:00.{'123456789'[:digits]}Z", int("123456"[:digits].ljust(6, "0")))
            for digits in range(1, 10)
        ),
        ("2026-01-31T12:00:00.999999999Z", 999999),
        ("2026-01-31T12:00:00+00:00", 0),
        ("2026-01-31T13:30:00.5+01:30", 500000),
        ("2026-01-31T12:00:00", 0),
        ("2026-01-31t12:00:00z", 0),
    ],
)
def test_instants(text: str, microsecond: int) -> None:
    found = read(wire(message(lifecycle={"start-time": text})))
    assert found.start_time == NOON.replace(microsecond=microsecond)
    assert found.start_time is not None
    assert found.start_time.tzinfo is UTC


@pytest.mark.parametrize("start", ["", None])
def test_a_start_time_that_says_nothing(start: str | None) -> None:
    found = read(wire(message(lifecycle={"state": "end", "start-time": start, "end-time": "2026-01-31T12:00:01Z"})))
    assert (found.state, found.start_time, found.end_time) == (FlowState.END, None, NOON + timedelta(seconds=1))


def test_no_start_time_and_no_end_time() -> None:
    content = message(lifecycle={"state": "end"})
    del content["flow-lifecycle"]["start-time"]
    del content["flow-lifecycle"]["current-time"]
    found = read(wire(content))
    assert (found.start_time, found.end_time, found.current_time) == (None, None, None)


def test_keys_in_any_order() -> None:
    content = message()
    turned = {
        name: dict(reversed(part.items())) if isinstance(part, dict) else part
        for name, part in reversed(content.items())
    }
    assert read(wire(turned)) == read(wire(content))


def test_unknown_objects_are_kept() -> None:
    more = {
        "netlink": {"rtt": 1.5, "big": (1 << 64) - 1},
        "skOps": [1, None, -(1 << 63)],
        "storage-stats": {"a": {"b": True}},
        "x": "y",
    }
    assert read(wire(message() | more)).extra == more
    inside = message()
    inside["context"]["more"] = 1
    inside["flow-id"]["more"] = {}
    assert read(wire(inside)) == read(wire(message()))


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        ({}, None),
        (None, None),
        ({"sent": 5}, Usage(sent=5)),
        ({"received": 0, "sent": 1 << 40}, Usage(received=0, sent=1 << 40)),
        ({"received": None}, Usage()),
        ({"other": "x", "sent": 1}, Usage(sent=1)),
        ({"sent": -1, "received": 1}, Usage(received=1)),
    ],
)
def test_usage(usage: object, found: Usage | None) -> None:
    assert read(wire(message() | {"usage": usage})).usage == found


def test_a_port_that_its_reporter_did_not_know() -> None:
    found = read(wire(message(flow={"dst-port": 0})))
    assert found.key.dst_port == 0
    assert not found.key.is_complete


@pytest.mark.parametrize(
    ("flow", "src", "dst", "zone"),
    [
        ({"src-ip": "2001:DB8:0:0::1", "dst-ip": "[2001:db8::2]"}, "2001:db8::1", "2001:db8::2", ""),
        ({"src-ip": "::ffff:192.0.2.1", "dst-ip": "::ffff:192.0.2.2"}, "192.0.2.1", "192.0.2.2", ""),
        ({"src-ip": "::ffff:192.0.2.1", "dst-ip": "::FFFF:c000:202", "afi": "ipv4"}, "192.0.2.1", "192.0.2.2", ""),
        ({"src-ip": "192.0.2.1", "dst-ip": "192.0.2.2", "afi": "ipv4"}, "192.0.2.1", "192.0.2.2", ""),
        ({"src-ip": "fe80::1%eth0", "dst-ip": "fe80::2%eth0"}, "fe80::1", "fe80::2", "eth0"),
        ({"src-ip": "fe80::1", "dst-ip": "fe80::2%25"}, "fe80::1", "fe80::2", "25"),
    ],
)
def test_addresses(flow: dict[str, str], src: str, dst: str, zone: str) -> None:
    found = read(wire(message(flow=flow)))
    assert (found.key.src, found.key.dst, found.zone) == (src, dst, zone)


def test_small_departures() -> None:
    no_afi = message()
    del no_afi["flow-id"]["afi"]
    assert read(wire(no_afi)).key == KEY
    assert read(wire(message(flow={"protocol": "UDP"}))).key.protocol == "udp"
    no_application = message()
    del no_application["context"]["application"]
    assert read(wire(no_application)).application == ""
    assert read(wire(message(context={"experiment-id": 0, "activity-id": 0}))).tag == UNKNOWN
    assert read(wire(message(context={"experiment-id": 0, "activity-id": 14}))).is_unknown
    assert read(wire(message(context={"experiment-id": 1023, "activity-id": 63}))).tag == Tag(1023, 63)
    assert read(wire(message(lifecycle={"state": "ongoing"}))).state is FlowState.ONGOING


# --- reading: rubbish ---------------------------------------------------------------------------


def without(part: str, name: str) -> dict[str, Any]:
    content = message()
    del content[part][name]
    return content


RUBBISH: list[tuple[bytes, str]] = [
    (b"", "no JSON object in b''"),
    (b"\0\0\0", "no JSON object"),
    (b"<134>1 - h app - firefly-json - ", "no JSON object"),
    (b"{", "no valid JSON"),
    (b"{}", "version None is not 1"),
    (b'{"version":1}', "flow-lifecycle is missing"),
    (wire(message()) + b"x", "no valid JSON"),
    (wire(message()) * 2, "no valid JSON"),
    (wire(message())[:-1], "no valid JSON"),
    (b'{"version":1,"flow-lifecycle":"\xff"}', "no valid JSON"),
    (b'{"version":1e999}', "no valid JSON"),
    (b'{"version":' + b"9" * 5000 + b"}", "no valid JSON"),
    (wire(message() | {"version": 2}), "version 2"),
    (wire(message() | {"version": True}), "version True"),
    (wire(message() | {"version": "1"}), "version '1'"),
    (wire(message() | {"flow-id": []}), r"flow-id \[\] is not an object"),
    (wire(message() | {"context": None}), "context is missing"),
    (wire(message() | {"usage": 7}), "usage 7 is not an object"),
    (wire(message() | {"usage": {"sent": "7"}}), "usage sent '7'"),
    (wire(message() | {"usage": {"received": True}}), "usage received True"),
    (wire(message() | {"usage": {"received": 1.5}}), "usage received 1.5"),
    (wire(message() | {"usage": {"sent": 1 << 64}}), "usage sent 18446744073709551616 is greater than"),
    (wire(message() | {"x": [{"y": -(1 << 63) - 1}]}), "number -9223372036854775809 is outside"),
    (wire(without("flow-lifecycle", "state")), "state is missing"),
    (wire(message(lifecycle={"state": "begin"})), "state 'begin'"),
    (wire(message(lifecycle={"state": 1})), "state 1 is not a string"),
    (wire(message(lifecycle={"start-time": "yesterday"})), "start-time 'yesterday'"),
    (wire(message(lifecycle={"start-time": "2026-01-31"})), "start-time '2026-01-31'"),
    (wire(message(lifecycle={"start-time": "2026-13-31T12:00:00Z"})), "start-time"),
    (wire(message(lifecycle={"start-time": "0001-01-01T00:00:00+23:59"})), "start-time '0001"),
    (wire(message(lifecycle={"start-time": "9999-12-31T23:59:59-23:59"})), "start-time '9999"),
    (wire(message(lifecycle={"start-time": 0})), "start-time 0 is not a string"),
    (wire(message(lifecycle={"start-time": False})), "start-time False is not a string"),
    (wire(message(lifecycle={"end-time": {}})), r"end-time \{\} is not a string"),
    (wire(message(lifecycle={"current-time": 5})), "current-time 5"),
    (wire(without("flow-id", "src-ip")), "src-ip is missing"),
    (wire(message(flow={"src-ip": "host.example"})), "'host.example' is not an IP address"),
    (wire(message(flow={"src-ip": ""})), "'' is not an IP address"),
    (wire(message(flow={"src-ip": "192.0.2.1"})), "two address families"),
    (wire(message(flow={"src-ip": "192.0.2.1", "dst-ip": "192.0.2.2"})), "afi 'ipv6' does not fit"),
    (wire(message(flow={"afi": "ipv4"})), "afi 'ipv4' does not fit"),
    (wire(message(flow={"afi": "ipx"})), "afi 'ipx'"),
    (wire(message(flow={"afi": ["ipv6"]})), "afi"),
    (wire(message(flow={"protocol": "sctp"})), "protocol 'sctp'"),
    (wire(message(flow={"src-port": 65536})), "port 65536"),
    (wire(message(flow={"src-port": -1})), "port -1"),
    (wire(message(flow={"src-port": "1094"})), "src-port '1094'"),
    (wire(message(flow={"dst-port": True})), "dst-port True"),
    (wire(message(flow={"dst-port": 1.5})), "dst-port 1.5"),
    (wire(without("flow-id", "dst-port")), "dst-port is missing"),
    (wire(message(context={"experiment-id": 1024})), "experiment 1024"),
    (wire(message(context={"experiment-id": -1})), "experiment -1"),
    (wire(message(context={"experiment-id": "2"})), "experiment '2'"),
    (wire(message(context={"activity-id": 64})), "activity 64"),
    (wire(message(context={"activity-id": True})), "activity True"),
    (wire(without("context", "activity-id")), "activity None"),
    (wire(message(context={"application": 7})), "application 7"),
    (wire(message(context={"application": "\ud800"})), "no valid JSON"),
]


@pytest.mark.parametrize(("datagram", "why"), RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish_is_refused_and_named(datagram: bytes, why: str) -> None:
    with pytest.raises(FireflyError, match=why) as caught:
        firefly.decode(datagram)
    assert len(str(caught.value)) < 400


def nested(depth: int, opening: bytes = b'{"a":', closing: bytes = b"}") -> bytes:
    """A firefly with an unknown object, so that the whole is nested so deep."""
    inner = opening * (depth - 1) + b"1" + closing * (depth - 1)
    return wire(message())[:-1] + b',"more":' + inner + b"}"


@pytest.mark.parametrize(("opening", "closing"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_nesting_has_a_limit(opening: bytes, closing: bytes) -> None:
    assert read(nested(firefly.MAX_NESTING, opening, closing)).extra.keys() == {"more"}
    for depth in (firefly.MAX_NESTING + 1, 200, 5000):
        with pytest.raises(FireflyError, match="nested deeper than 16"):
            read(nested(depth, opening, closing))


def test_width_is_no_nesting() -> None:
    wide = {"skOps": [{"a": [1]} for _ in range(100)], "text": "{[" * 100}
    assert read(wire(message() | wide)).extra == wide


def test_size_has_a_limit() -> None:
    datagram = wire(message())
    assert firefly.decode(datagram, max_octets=len(datagram)).event.key == KEY
    with pytest.raises(FireflyError, match=f"{len(datagram)} octets is longer than {len(datagram) - 1}"):
        firefly.decode(datagram, max_octets=len(datagram) - 1)
    with pytest.raises(FireflyError, match="longer than 65507"):
        firefly.decode(datagram.ljust(65508))


def test_every_truncation_is_refused() -> None:
    datagram = firefly.encode(event(), now=NOON, host="h", app="a")
    for length in range(len(datagram)):
        with pytest.raises(FireflyError):
            firefly.decode(datagram[:length])


@given(st.binary(max_size=400))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    with pytest.raises(FireflyError):
        firefly.decode(octets)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
PLACES = [(), *((part, name) for part in ("flow-lifecycle", "flow-id", "context") for name in message()[part])]


@given(st.sampled_from([*PLACES, ("version",), ("usage",), ("flow-id",), ("context",), ("flow-lifecycle",)]), JSON)
def test_any_value_in_any_place_is_read_or_refused(place: tuple[str, ...], value: Any) -> None:
    content: Any = message()
    if place:
        inside = content if len(place) == 1 else content[place[0]]
        inside[place[-1]] = value
    else:
        content = value
    try:
        found = firefly.decode(json.dumps(content).encode())
    except FireflyError:
        return
    assert 0 <= found.event.tag.experiment <= 1023


@given(st.data())
def test_a_flipped_octet_does_no_harm(data: st.DataObject) -> None:
    datagram = bytearray(firefly.encode(event(), now=NOON, host="h", app="a"))
    at = data.draw(st.integers(0, len(datagram) - 1))
    datagram[at] = data.draw(st.integers(0, 255))
    try:
        found = firefly.decode(bytes(datagram))
    except FireflyError:
        return
    assert isinstance(found.event.key, FlowKey)


def test_the_schema_refuses_what_it_should() -> None:
    """The validator that the tests above trust does look at formats."""
    validator = schema_validator()
    validator.validate(message())
    for content in (
        message(flow={"src-ip": "nonsense"}),
        message(lifecycle={"start-time": "nonsense"}),
        message(lifecycle={"state": "end"}),
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(content)
