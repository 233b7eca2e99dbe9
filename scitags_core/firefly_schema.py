"""The rules of firefly version 1 to the letter, for those who write fireflies and want them checked.

Reading (scitags_core.firefly.decode) is lenient; this is not. The types below state the published
schema's rules; formats of dates and addresses are checked as well. In one thing they are stricter: a
port written 1094.0 is an integer to JSON Schema, but to few who read fireflies.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

import msgspec

from scitags_core.errors import FireflyError, InvalidValue
from scitags_core.firefly import split
from scitags_core.instant import parse_instant

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class _Lifecycle(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    state: Literal["start", "end", "ongoing"]
    start_time: str
    end_time: str | msgspec.UnsetType = msgspec.UNSET
    current_time: str | msgspec.UnsetType = msgspec.UNSET


class _FlowId(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    afi: Literal["ipv4", "ipv6"]
    src_ip: str
    dst_ip: str
    protocol: Literal["tcp", "udp"]
    src_port: _Port
    dst_port: _Port


class _Usage(msgspec.Struct, forbid_unknown_fields=True):
    received: int | msgspec.UnsetType = msgspec.UNSET
    sent: int | msgspec.UnsetType = msgspec.UNSET


class _Context(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    experiment_id: int
    activity_id: int
    application: str | msgspec.UnsetType = msgspec.UNSET


class _Firefly(msgspec.Struct, rename="kebab"):
    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    flow_lifecycle: _Lifecycle
    flow_id: _FlowId
    context: _Context
    usage: _Usage | msgspec.UnsetType = msgspec.UNSET
    netlink: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


def problems(datagram: bytes) -> list[str]:
    """What keeps a datagram from being a firefly by the letter; an empty list when nothing does."""
    try:
        header, message = split(datagram)
    except FireflyError as error:
        return [str(error)]
    found = [] if header is not None else ["no RFC 5424 header with the message id firefly-json"]
    if header is not None and header.timestamp is None:
        found.append("the RFC 5424 header has no timestamp")
    return found + message_problems(message)


def message_problems(message: dict[str, Any]) -> list[str]:
    """What is wrong with the JSON object alone."""
    try:
        firefly = msgspec.convert(message, _Firefly)
    except msgspec.ValidationError as error:
        return [str(error)]
    return _time_problems(firefly.flow_lifecycle) + _address_problems(firefly.flow_id)


def _time_problems(lifecycle: _Lifecycle) -> list[str]:
    found = []
    if lifecycle.state == "end" and lifecycle.end_time is msgspec.UNSET:
        found.append("state is end and end-time is missing")
    for name in ("start_time", "end_time", "current_time"):
        text = getattr(lifecycle, name)
        if text is not msgspec.UNSET and not _is_rfc3339(text):
            found.append(f"{name.replace('_', '-')} {text!r} is not an RFC 3339 date and time")
    return found


def _is_rfc3339(text: str) -> bool:
    if not _RFC3339.fullmatch(text):
        return False
    try:
        parse_instant(text)
    except InvalidValue:
        return False
    return True


def _address_problems(flow_id: _FlowId) -> list[str]:
    found = []
    family = ipaddress.IPv4Address if flow_id.afi == "ipv4" else ipaddress.IPv6Address
    for name, text in (("src-ip", flow_id.src_ip), ("dst-ip", flow_id.dst_ip)):
        try:
            address = family(text)
        except ValueError:
            address = None
        # A zone index is of one host, and no part of an address (RFC 4007, section 11.2).
        if address is None or getattr(address, "scope_id", None) is not None:
            found.append(f"{name} {text!r} is not an {flow_id.afi} address")
    return found
