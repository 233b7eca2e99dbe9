"""Our JSON for flow events: what integrations tell the agent, and what the agent writes of flows.

    {"state": "start", "protocol": "tcp", "src": "2001:db8::1", "src_port": 1094,
     "dst": "2001:db8::2", "dst_port": 43720, "scitag": 143}

Either scitag, or experiment and activity, by number. Optional: start_time and end_time (ISO 8601),
application, usage {"sent", "received"} in octets (0..2^64-1), and id, which tells apart the transfers that share a
connection. One object or an array of them. Unknown members are refused, so that a misspelt one is found.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from scitags_core.errors import FlowEventError, InvalidValue, TagError, shown
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage, check_tag, zone_of
from scitags_core.instant import parse_instant
from scitags_core.tag import UNKNOWN, Tag, decode

OCTETS_MAX = (1 << 64) - 1


class FlowEventJson(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The members of one event; the docstring of this module says what they mean."""

    state: Literal["start", "ongoing", "end"]
    src: str
    src_port: int
    dst: str
    dst_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    scitag: int | None = None
    experiment: int | None = None
    activity: int | None = None
    start_time: str | None = None
    end_time: str | None = None
    application: str = ""
    usage: Usage | None = None
    id: str = ""


def decode_events(message: bytes) -> tuple[list[FlowEvent], list[str]]:
    """The events in a message, and what is wrong with those that are not among them.

    One bad event in an array costs no other. Raises FlowEventError when the whole is no JSON.
    """
    return events_of(json_of(message))


def json_of(message: bytes) -> Any:
    """The JSON in a message, not yet looked into. Raises FlowEventError."""
    try:
        return msgspec.json.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FlowEventError(f"no valid JSON: {error or 'nested too deeply'}") from None


def events_of(content: Any) -> tuple[list[FlowEvent], list[str]]:
    """As decode_events, from JSON that is already decoded."""
    events: list[FlowEvent] = []
    wrong: list[str] = []
    for item in content if isinstance(content, list) else [content]:
        try:
            events.append(decode_event(item))
        except FlowEventError as error:
            wrong.append(str(error))
    return events, wrong


def decode_event(item: object) -> FlowEvent:
    """The event in one decoded JSON object; FlowEventError names what is wrong."""
    try:
        fields = msgspec.convert(item, FlowEventJson)
    except msgspec.ValidationError as error:
        raise FlowEventError(f"{error} in {shown(item)}") from None
    return FlowEvent(
        state=FlowState(fields.state),
        key=FlowKey.of(fields.src, fields.src_port, fields.dst, fields.dst_port, fields.protocol),
        tag=_tag(fields),
        start_time=_instant("start_time", fields.start_time),
        end_time=_instant("end_time", fields.end_time),
        application=fields.application,
        usage=_usage(fields.usage),
        transfer_id=fields.id,
        zone=zone_of(fields.dst),
    )


def encode_event(event: FlowEvent) -> bytes:
    """The event as one JSON object on one line, without the newline; decode_event reads it again."""
    key = event.key
    return msgspec.json.encode(
        FlowEventJson(
            state=event.state.value,
            src=key.src,
            src_port=key.src_port,
            dst=f"{key.dst}%{event.zone}" if event.zone else key.dst,
            dst_port=key.dst_port,
            protocol=key.protocol,
            experiment=event.tag.experiment,
            activity=event.tag.activity,
            start_time=event.start_time.isoformat() if event.start_time else None,
            end_time=event.end_time.isoformat() if event.end_time else None,
            application=event.application,
            usage=event.usage,
            id=event.transfer_id,
        )
    )


def _tag(fields: FlowEventJson) -> Tag:
    if fields.scitag is not None:
        if fields.experiment is not None or fields.activity is not None:
            raise FlowEventError("both scitag and experiment or activity are given")
        try:
            return decode(fields.scitag)
        except TagError as error:
            if fields.scitag == 0:
                return UNKNOWN
            raise FlowEventError(str(error)) from None
    if fields.experiment is None or fields.activity is None:
        raise FlowEventError("neither scitag nor experiment and activity are given")
    return check_tag(fields.experiment, fields.activity)


def _usage(usage: Usage | None) -> Usage | None:
    if usage is not None:
        for name, octets in (("received", usage.received), ("sent", usage.sent)):
            if octets is not None and not 0 <= octets <= OCTETS_MAX:
                raise FlowEventError(f"usage {name} {shown(octets)} is outside 0..{OCTETS_MAX}")
    return usage


def _instant(name: str, text: str | None) -> datetime | None:
    try:
        return parse_instant(text) if text else None
    except InvalidValue as error:
        raise FlowEventError(f"{name} {error}") from None


def schema() -> dict[str, Any]:
    """The JSON Schema of one event or an array of them."""
    return msgspec.json.schema(FlowEventJson | list[FlowEventJson])
