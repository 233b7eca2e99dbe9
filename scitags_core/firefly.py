"""Fireflies: one UDP datagram that tells the network about one flow.

A syslog header (scitags_core.syslog), a blank, and a JSON object of version 1. What is written here
always meets the published schema. What is read is taken as the peers write it; every departure that
was seen in the field is handled where it occurs, and said there.

Source: firefly schema version 1; port 10514 by convention of the initiative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

import msgspec

from scitags_core.errors import FireflyError, FlowEventError, InvalidValue, shown
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage, check_tag, zone_of
from scitags_core.instant import parse_instant
from scitags_core.syslog import SyslogHeader, format_header, parse_header
from scitags_core.tag import Tag

PORT = 10514
VERSION = 1
# An IPv6 packet of the minimum MTU (1280), less 40 octets of IPv6 and 8 of UDP.
MAX_UNFRAGMENTED = 1232
MAX_DATAGRAM = 65507
MAX_NESTING = 16

# What fits into 64 bits, with or without a sign: nothing that we keep or pass on takes more.
NUMBER_MIN, NUMBER_MAX = -(1 << 63), (1 << 64) - 1

_KNOWN = frozenset({"version", "flow-lifecycle", "flow-id", "usage", "context"})
_START, _END = FlowState.START, FlowState.END
_STATES = {state.value: state for state in FlowState}
_CONTAINERS = (dict, list)  # a union would be made anew at each use


class Firefly(msgspec.Struct, frozen=True):
    """A decoded firefly: the event that it tells of, and its syslog header where it had one."""

    event: FlowEvent
    header: SyslogHeader | None = None


# --- writing ------------------------------------------------------------------------------------


class _Lifecycle(msgspec.Struct, rename="kebab", omit_defaults=True, gc=False):
    state: FlowState
    current_time: datetime
    start_time: datetime
    end_time: datetime | None = None


class _FlowId(msgspec.Struct, rename="kebab", gc=False):
    afi: str
    src_ip: str
    dst_ip: str
    protocol: str
    src_port: int
    dst_port: int


class _Context(msgspec.Struct, rename="kebab", gc=False):
    experiment_id: int
    activity_id: int
    application: str


class _Message(msgspec.Struct, rename="kebab", omit_defaults=True):
    version: int
    flow_lifecycle: _Lifecycle
    flow_id: _FlowId
    context: _Context
    usage: Usage | None = None


_encode_json = msgspec.json.Encoder().encode


def encode(event: FlowEvent, *, now: datetime, host: str, app: str, max_octets: int = MAX_UNFRAGMENTED) -> bytes:
    """The datagram for an event.

    now is written as its launch; host and app name the sender. When it would be longer than max_octets,
    unknown objects are left out first, then the end of the application's name. Raises InvalidValue for
    what the schema cannot express: an unknown port, no start time, an end without end time, or a
    max_octets that even the bare message exceeds.
    """
    return _encode_behind(_header_octets(now, host, app), event, now, max_octets)


class Bundle:
    """Fireflies that leave together: octet for octet what encode() writes, for a sender of very many.

    Most differ in their 5-tuples alone. What stands before it is written once for all that began (and ended) at one
    time, what stands behind it once for each tag, and a 5-tuple has nothing in it that JSON would write otherwise.
    """

    def __init__(self, now: datetime, host: str, app: str, max_octets: int = MAX_UNFRAGMENTED) -> None:
        """As of encode()."""
        self._now = now
        self._max_octets = max_octets
        self._header = _header_octets(now, host, app)
        self._openings: dict[tuple[datetime, datetime | None], str] = {}

    def encode(self, event: FlowEvent) -> bytes:
        """The datagram for an event. Raises InvalidValue as encode() does."""
        [datagram] = self.encode_all((event,))
        if isinstance(datagram, InvalidValue):
            raise datagram
        return datagram

    def encode_all(self, events: Iterable[FlowEvent]) -> list[bytes | InvalidValue]:
        """The datagram for each event, or what encode() raises.

        Neighbours have most in common, often the very same objects: what is made of those is made once.
        """
        datagrams: list[bytes | InvalidValue] = []
        of_starts = of_ends = closing = ""
        began = ended_began = ended = tag = application = None
        for event in events:
            key, start, state = event.key, event.start_time, event.state
            opening = ""
            if event.usage is None and not event.extra and start is not None and key.src_port and key.dst_port:
                if state is _START:
                    if start is not began:
                        began, of_starts = start, self._opening(start, None)
                    opening = of_starts
                elif state is _END and event.end_time is not None:
                    if start is not ended_began or event.end_time is not ended:
                        ended_began, ended = start, event.end_time
                        of_ends = self._opening(start, ended)
                    opening = of_ends
            if event.tag is not tag or event.application is not application:
                tag, application = event.tag, event.application
                closing = _closing(tag, application) if application.isascii() else ""
            if opening and closing:
                afi = "ipv6" if ":" in key.src else "ipv4"
                datagram = (
                    f'{opening}"flow-id":{{"afi":"{afi}","src-ip":"{key.src}","dst-ip":"{key.dst}",'
                    f'"protocol":"{key.protocol}","src-port":{key.src_port},"dst-port":{key.dst_port}}},{closing}'
                ).encode("ascii")
                if len(datagram) <= self._max_octets:
                    datagrams.append(datagram)
                    continue
            datagrams.append(self._encode_unusual(event))
        return datagrams

    def _encode_unusual(self, event: FlowEvent) -> bytes | InvalidValue:
        try:
            return _encode_behind(self._header, event, self._now, self._max_octets)
        except InvalidValue as error:
            return error

    def _opening(self, start: datetime, end: datetime | None) -> str:
        found = self._openings.get((start, end))
        if found is None:
            lifecycle = _encode_json(_Lifecycle(_END if end else _START, self._now, start, end))
            opening = b'%b{"version":%d,"flow-lifecycle":%b,' % (self._header, VERSION, lifecycle)
            found = self._openings[start, end] = opening.decode("ascii")
        return found


@lru_cache(maxsize=1 << 12)
def _closing(tag: Tag, application: str) -> str:
    return '"context":' + _encode_json(_Context(tag.experiment, tag.activity, application)).decode("ascii") + "}"


def _header_octets(now: datetime, host: str, app: str) -> bytes:
    return format_header(now, host, app).encode("ascii") + b" "


def _encode_behind(prefix: bytes, event: FlowEvent, now: datetime, max_octets: int) -> bytes:
    key = event.key
    if not key.src_port or not key.dst_port:
        raise InvalidValue(f"{key}: a firefly needs both ports")
    if event.start_time is None:
        raise InvalidValue(f"{event.key}: a firefly needs the flow's start time")
    if event.state is FlowState.END and event.end_time is None:
        raise InvalidValue(f"{event.key}: the firefly of an end needs the end time")
    try:
        datagram = prefix + _encode_json(_message(event, now, event.application, event.extra))
    except UnicodeEncodeError:  # half a surrogate pair: what bytes that are no UTF-8 become on their way here
        raise InvalidValue(f"{event.key}: application {shown(event.application)} or an object is no Unicode") from None
    if len(datagram) > max_octets:
        datagram = prefix + _encode_json(_message(event, now, event.application, {}))
    if len(datagram) > max_octets:
        spare = max_octets - len(prefix) - len(_encode_json(_message(event, now, "", {})))
        datagram = prefix + _encode_json(_message(event, now, _cut(event.application, spare), {}))
    if len(datagram) > max_octets:
        raise InvalidValue(f"a firefly of {len(datagram)} octets cannot be cut to {max_octets}")
    return datagram


def _message(event: FlowEvent, now: datetime, application: str, extra: Mapping[str, Any]) -> _Message | dict[str, Any]:
    key, tag = event.key, event.tag
    message = _Message(
        VERSION,
        _Lifecycle(
            event.state,
            now,
            cast("datetime", event.start_time),
            event.end_time if event.state is FlowState.END else None,
        ),
        _FlowId("ipv6" if key.is_ipv6 else "ipv4", key.src, key.dst, key.protocol, key.src_port, key.dst_port),
        _Context(tag.experiment, tag.activity, application),
        event.usage,
    )
    if not extra:
        return message
    # The schema knows netlink, as an object; whatever else a peer sent under that name stays home.
    known = _KNOWN if isinstance(extra.get("netlink"), dict) else {*_KNOWN, "netlink"}
    content: dict[str, Any] = msgspec.to_builtins(message, builtin_types=(datetime,))
    return content | {name: value for name, value in extra.items() if name not in known}


def _cut(text: str, octets: int) -> str:
    """As much of the text as its JSON form, without quotes, fits into so many octets."""
    while text and len(_encode_json(text)) - 2 > octets:
        text = text[: min(len(text) - 1, max(0, octets))]
    return text


def is_reversed(event: FlowEvent) -> bool:
    """Whether an event's usage says that its destination supplies the data.

    Storages name as the source whoever they take for it before a transfer; what was moved in the end tells. Without
    usage, or with as much both ways, they are believed.
    """
    return event.usage is not None and (event.usage.received or 0) > (event.usage.sent or 0)


def turned(event: FlowEvent) -> FlowEvent:
    """The event with its ends exchanged, and the usage with them."""
    usage = event.usage
    if usage is not None:
        usage = Usage(received=usage.sent, sent=usage.received)
    return msgspec.structs.replace(event, key=event.key.reversed(), usage=usage, is_reversed=False)


# --- reading ------------------------------------------------------------------------------------


def decode(datagram: bytes, *, max_octets: int = MAX_DATAGRAM) -> Firefly:
    """The firefly in a datagram or a line of a log.

    Raises FireflyError, naming the bad value, for what is no firefly, is longer than max_octets, is nested
    deeper than MAX_NESTING, or has us keep an integer outside NUMBER_MIN..NUMBER_MAX. A missing start time,
    an empty usage, a port of 0 and unknown objects are accepted; the latter are kept in the event's extra.
    """
    header, message = split(datagram, max_octets=max_octets)
    version = message.get("version")
    if version != VERSION or isinstance(version, bool):
        raise FireflyError(f"version {shown(version)} is not {VERSION}")
    try:
        event = _event(message)
    except (FlowEventError, InvalidValue) as error:
        raise FireflyError(str(error)) from None
    return Firefly(event, header)


def split(datagram: bytes, *, max_octets: int = MAX_DATAGRAM) -> tuple[SyslogHeader | None, dict[str, Any]]:
    """The header and the bare JSON object of a datagram; FireflyError when there is no such object."""
    if len(datagram) > max_octets:
        raise FireflyError(f"message of {len(datagram)} octets is longer than {max_octets}")
    start = datagram.find(b"{")
    if start < 0:
        raise FireflyError(f"no JSON object in {shown(bytes(datagram[:80]))}")
    try:
        message = msgspec.json.decode(datagram[start:].rstrip(b"\0\r\n\t "))
    except RecursionError:
        raise FireflyError(f"objects are nested deeper than {MAX_NESTING}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FireflyError(f"no valid JSON: {error}") from None
    # Fewer brackets than the limit cannot be nested deeper than it: nearly all fireflies end here.
    if datagram.count(b"{", start) + datagram.count(b"[", start) > MAX_NESTING:
        _check_nesting(message)
    return parse_header(datagram[:start]), message


def _check_nesting(message: dict[str, Any]) -> None:
    level: list[Any] = [message]
    for _ in range(MAX_NESTING):
        deeper: list[Any] = []
        for container in level:
            values = container.values() if isinstance(container, dict) else container
            deeper += [value for value in values if isinstance(value, _CONTAINERS)]
        if not deeper:
            return
        level = deeper
    raise FireflyError(f"objects are nested deeper than {MAX_NESTING}")


def _extra(message: dict[str, Any]) -> dict[str, Any]:
    """The objects that are unknown here. Raises FlowEventError for a number in them that nobody could write down."""
    if message.keys() <= _KNOWN:
        return {}
    extra = {name: value for name, value in message.items() if name not in _KNOWN}
    left: list[Any] = [extra]
    while left:
        value = left.pop()
        if isinstance(value, _CONTAINERS):
            left += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and not NUMBER_MIN <= value <= NUMBER_MAX:
            raise FlowEventError(f"number {shown(value)} is outside {NUMBER_MIN}..{NUMBER_MAX}")
    return extra


def _event(message: dict[str, Any]) -> FlowEvent:
    lifecycle = _object(message, "flow-lifecycle")
    flow_id = _object(message, "flow-id")
    context = _object(message, "context")
    state = _STATES.get(_text(lifecycle, "state"))
    if state is None:
        raise FlowEventError(f"state {shown(lifecycle['state'])} is none of {', '.join(_STATES)}")
    application = context.get("application", "")
    if not isinstance(application, str):
        raise FlowEventError(f"application {shown(application)} is not a string")
    return FlowEvent(
        state=state,
        key=_key(flow_id),
        tag=check_tag(context.get("experiment-id"), context.get("activity-id")),
        start_time=_instant(lifecycle, "start-time"),
        end_time=_instant(lifecycle, "end-time"),
        current_time=_instant(lifecycle, "current-time"),
        application=application,
        usage=_usage(message.get("usage")),
        zone=zone_of(flow_id["dst-ip"]),
        extra=_extra(message),
    )


def _key(flow_id: dict[str, Any]) -> FlowKey:
    source = _text(flow_id, "src-ip")
    key = FlowKey.of(
        source,
        _port(flow_id, "src-port"),
        _text(flow_id, "dst-ip"),
        _port(flow_id, "dst-port"),
        _text(flow_id, "protocol"),
    )
    # afi repeats what the addresses say, and ::ffff:192.0.2.1 is called ipv6 by some and ipv4 by others.
    is_ipv6 = ":" in key.src
    afi = flow_id.get("afi", "ipv6" if is_ipv6 else "ipv4")
    if not (afi == "ipv6" and ":" in source) and not (afi == "ipv4" and not is_ipv6):
        raise FlowEventError(f"afi {shown(afi)} does not fit the address {source}")
    return key


def _object(message: dict[str, Any], name: str) -> dict[str, Any]:
    value = message.get(name)
    if not isinstance(value, dict):
        raise FlowEventError(f"{name} {'is missing' if value is None else f'{shown(value)} is not an object'}")
    return value


def _text(container: dict[str, Any], name: str) -> str:
    value = container.get(name)
    if type(value) is not str:
        raise FlowEventError(f"{name} {'is missing' if value is None else f'{shown(value)} is not a string'}")
    return value


def _port(flow_id: dict[str, Any], name: str) -> int:
    value = flow_id.get(name)
    if type(value) is not int:
        raise FlowEventError(f"{name} {'is missing' if value is None else f'{shown(value)} is not an integer'}")
    return value


def _instant(lifecycle: dict[str, Any], name: str) -> datetime | None:
    value = lifecycle.get(name)
    if not value and (value is None or value == ""):  # both public daemons leave start-time so in an end
        return None
    if type(value) is not str:
        raise FlowEventError(f"{name} {shown(value)} is not a string")
    try:
        return parse_instant(value)
    except InvalidValue as error:
        raise InvalidValue(f"{name} {error}") from None


def _usage(value: object) -> Usage | None:
    if value is None or value == {}:
        return None
    if not isinstance(value, dict):
        raise FlowEventError(f"usage {shown(value)} is not an object")
    received, sent = value.get("received"), value.get("sent")
    for name, octets in (("received", received), ("sent", sent)):
        if type(octets) is not int and octets is not None:
            raise FlowEventError(f"usage {name} {shown(octets)} is not an integer")
        if octets is not None and octets > NUMBER_MAX:
            raise FlowEventError(f"usage {name} {shown(octets)} is greater than {NUMBER_MAX}")
    return Usage(_count(received), _count(sent))


def _count(octets: int | None) -> int | None:
    """Nobody has moved less than nothing: whoever says so did not know."""
    return None if octets is None or octets < 0 else octets
