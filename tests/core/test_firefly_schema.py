"""The rules to the letter: our own check says of every message what the published schema says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scitags_core import firefly, firefly_schema
from scitags_core.flow import FlowEvent
from tests.core.fireflies import NOON, events, message, schema_validator, wire
from tests.core.shared_spec import recordings

HEADER = b"<134>1 2026-01-31T12:00:00Z h app - firefly-json - "


def test_a_good_firefly_has_no_problems() -> None:
    assert firefly_schema.problems(HEADER + wire(message())) == []


@given(events())
def test_what_we_write_has_no_problems(sent: FlowEvent) -> None:
    datagram = firefly.encode(sent, now=NOON, host="h", app="a", max_octets=firefly.MAX_DATAGRAM)
    assert firefly_schema.problems(datagram) == []


@pytest.mark.parametrize(
    ("datagram", "problems"),
    [
        (b"rubbish", ["no JSON object in b'rubbish'"]),
        (wire(message()), ["no RFC 5424 header with the message id firefly-json"]),
        (b"<134>1 - h a - firefly-json - " + wire(message()), ["the RFC 5424 header has no timestamp"]),
        (HEADER + wire(message(lifecycle={"state": "end"})), ["state is end and end-time is missing"]),
        (
            HEADER + wire(message(lifecycle={"start-time": "2026-01-31 12:00:00"})),
            ["start-time '2026-01-31 12:00:00' is not an RFC 3339 date and time"],
        ),
        (
            HEADER + wire(message(flow={"src-ip": "192.0.2.1", "dst-ip": "x"})),
            ["src-ip '192.0.2.1' is not an ipv6 address", "dst-ip 'x' is not an ipv6 address"],
        ),
    ],
)
def test_problems_are_named(datagram: bytes, problems: list[str]) -> None:
    assert firefly_schema.problems(datagram) == problems


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"flow": {"dst-port": 0}}, "dst-port"),
        ({"flow": {"zone": "eth0"}}, "zone"),
        ({"lifecycle": {"state": "begin"}}, "begin"),
        ({"context": {"experiment-id": "2"}}, "experiment-id"),
    ],
)
def test_the_place_is_named(change: dict[str, Any], named: str) -> None:
    (problem,) = firefly_schema.message_problems(message(**change))
    assert named in problem


@pytest.mark.parametrize("datagram", recordings())
def test_recordings_are_judged_as_by_the_schema(datagram: bytes) -> None:
    _, content = firefly.split(datagram)
    assert (firefly_schema.message_problems(content) == []) is schema_validator().is_valid(content)


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 65535, 65536, 1.5, "", "x", [], {}, {"sent": 1}, {"sent": "1"}, {"more": 1},
    "start", "end", "ongoing", "tcp", "udp", "TCP", "ipv4", "ipv6", "192.0.2.1", "192.0.2.256", "::1",
    "::ffff:192.0.2.1", "fe80::1%eth0", "[::1]", " ::1", "2001:DB8::1", "2026-01-31T12:00:00Z",
    "2026-01-31T12:00:00.123456789Z",
    "2026-01-31t12:00:00z", "2026-01-31T12:00:00+01:00", "2026-01-31T12:00:00", "2026-01-31 12:00:00Z",
    "2026-02-30T12:00:00Z", "2026-01-31T12:00:00+0100", "2026-01-31T12:00Z", "2026-01-31T24:00:00Z", "20260131T120000Z",
    "2026-W05-6T12:00:00Z",
    "2026-01-31T12:00:00,5Z",
]  # fmt: skip
PARTS = ("flow-lifecycle", "flow-id", "context", "usage", "netlink")
NAMES = ("state", "start-time", "end-time", "current-time", "afi", "src-ip", "dst-ip", "protocol", "src-port",
         "dst-port", "experiment-id", "activity-id", "application", "received", "sent", "more")  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A good message with up to four members replaced, added or taken away."""
    content = copy.deepcopy(message())
    if draw(st.booleans()):
        content["usage"] = {"sent": 1, "received": 2}
    for _ in range(draw(st.integers(1, 4))):
        part = draw(st.sampled_from((None, *PARTS)))
        inside = content if part is None else content.setdefault(part, {})
        if not isinstance(inside, dict):
            continue
        name = draw(st.sampled_from(("version", *PARTS, "skOps") if part is None else (*(inside or NAMES), *NAMES)))
        if draw(st.integers(0, 4)) == 0:
            inside.pop(name, None)
        else:
            inside[name] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return content


@given(mutated())
@settings(max_examples=1500)
def test_our_check_agrees_with_the_published_schema(content: dict[str, Any]) -> None:
    errors = [error.message for error in schema_validator().iter_errors(content)]
    assert bool(firefly_schema.message_problems(content)) is bool(errors), (content, errors)


def test_a_newline_after_an_instant_is_a_problem() -> None:
    """Not among the values above: the schema's usual checker lets it pass, by the '$' of its pattern."""
    (problem,) = firefly_schema.message_problems(message(lifecycle={"start-time": "2026-01-31T12:00:00Z\n"}))
    assert "RFC 3339" in problem


def test_an_integer_written_with_a_fraction_is_a_problem() -> None:
    """Nor is 1.0: an integer to JSON Schema, and to most readers of fireflies none."""
    (problem,) = firefly_schema.message_problems(message(flow={"src-port": 1.0}))
    assert "src-port" in problem


@given(st.binary(max_size=200))
def test_any_octets_have_problems(octets: bytes) -> None:
    assert firefly_schema.problems(octets)
