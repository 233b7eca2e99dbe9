"""Flow events and firefly messages for the tests, plain and as hypothesis makes them up."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import strategies as st

from scitags_core import firefly
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.tag import Tag
from tests.core.shared_spec import SPEC

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
KEY = FlowKey.of("2001:db8::1", 1094, "2001:db8::2", 43720)


def event(**changes: Any) -> FlowEvent:
    """A start that a firefly can tell of, with changes."""
    plain = FlowEvent(state=FlowState.START, key=KEY, tag=Tag(2, 15), start_time=NOON)
    return msgspec.structs.replace(plain, **changes)


def message(
    *,
    lifecycle: dict[str, Any] | None = None,
    flow: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON of the same event as event(), with changes."""
    instant = "2026-01-31T12:00:00Z"
    return {
        "version": 1,
        "flow-lifecycle": {"state": "start", "current-time": instant, "start-time": instant} | (lifecycle or {}),
        "flow-id": {
            "afi": "ipv6",
            "src-ip": "2001:db8::1",
            "dst-ip": "2001:db8::2",
            "protocol": "tcp",
            "src-port": 1094,
            "dst-port": 43720,
        }
        | (flow or {}),
        "context": {"experiment-id": 2, "activity-id": 15, "application": ""} | (context or {}),
    }


def wire(content: object) -> bytes:
    """The JSON alone, by the standard library."""
    return json.dumps(content).encode()


@functools.cache
def _validator() -> jsonschema.Draft202012Validator | None:
    path = SPEC / "firefly.schema.json"
    if not path.exists():
        return None
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    assert {"date-time", "ipv4", "ipv6"} <= set(checker.checkers)
    return jsonschema.Draft202012Validator(json.loads(path.read_text()), format_checker=checker)


def schema_validator() -> jsonschema.Draft202012Validator:
    """The published schema, formats included; the test is skipped where it is not there."""
    found = _validator()
    if found is None:
        pytest.skip("../shared/spec/firefly.schema.json is not beside this checkout")
    return found


_instants = st.datetimes(timezones=st.just(UTC))
_numbers = st.integers(firefly.NUMBER_MIN, firefly.NUMBER_MAX) | st.floats(allow_nan=False, allow_infinity=False)
_json = st.recursive(
    st.none() | st.booleans() | _numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_known = {"version", "flow-lifecycle", "flow-id", "usage", "context", "netlink"}
_objects = st.dictionaries(st.text(max_size=12).filter(lambda name: name not in _known), _json, max_size=3)
_counts = st.none() | st.integers(0, firefly.NUMBER_MAX)


@st.composite
def keys(draw: st.DrawFn) -> FlowKey:
    """5-tuples of one family, both ports known."""
    # An IPv4-mapped address is IPv4 to us, and would not go with a true IPv6 one.
    of_version_6 = st.ip_addresses(v=6).filter(lambda one: getattr(one, "ipv4_mapped", None) is None)
    addresses = draw(st.sampled_from((st.ip_addresses(v=4), of_version_6)))
    ports = st.integers(1, 65535)
    protocol = draw(st.sampled_from(("tcp", "udp")))
    return FlowKey.of(str(draw(addresses)), draw(ports), str(draw(addresses)), draw(ports), protocol)


@st.composite
def events(draw: st.DrawFn) -> FlowEvent:
    """Events that a firefly can tell of."""
    state = draw(st.sampled_from(FlowState))
    netlink = draw(st.none() | st.dictionaries(st.text(max_size=8), _json, max_size=2))
    return FlowEvent(
        state=state,
        key=draw(keys()),
        tag=Tag(draw(st.integers(0, 1023)), draw(st.integers(0, 63))),
        start_time=draw(_instants),
        end_time=draw(_instants),
        application=draw(st.text(max_size=80)),
        usage=draw(st.none() | st.builds(Usage, received=_counts, sent=_counts)),
        extra=draw(_objects) | ({} if netlink is None else {"netlink": netlink}),
    )
