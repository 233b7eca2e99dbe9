"""`scitags firefly`: decode, encode, validate. One message a line."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from scitags_core import firefly, firefly_schema
from scitags_core.cli import lines, names, tags
from scitags_core.cli.output import json_line, printable
from scitags_core.errors import FireflyError
from scitags_core.flow import FlowEvent, FlowState, Usage
from scitags_core.flow_json import decode_event, json_of
from scitags_core.flow_record import FlowRecord
from scitags_core.instant import format_instant
from scitags_core.registry import Registry
from scitags_core.roles import Command
from scitags_core.syslog import SyslogHeader

APPLICATION = "scitags"
_TRANSPORTS = ("tcp", "udp")


def run(arguments: argparse.Namespace) -> int:
    """`scitags firefly ACTION`."""
    return {"decode": _decode, "encode": _encode, "validate": _validate}[arguments.action](arguments)


# --- decode -------------------------------------------------------------------------------------


class Decoded(FlowRecord, frozen=True, omit_defaults=True, gc=False):
    """All that a firefly says, with the registry's names, in our own form. What is absent was not said."""

    application: str
    start_time: datetime | None
    end_time: datetime | None
    current_time: datetime | None
    usage: Usage | None
    registry: msgspec.Raw
    zone: str = ""
    syslog: SyslogHeader | None = None
    extra: dict[str, Any] = {}


_encode_json = msgspec.json.Encoder().encode


def as_json(message: firefly.Firefly, registry: Registry, provenance: msgspec.Raw) -> bytes:
    """One object for programs; provenance is the JSON that says where the names are from."""
    event = message.event
    return _encode_json(
        Decoded.of(
            msgspec.UNSET,
            event,
            registry.names(event.tag),
            event.application,
            event.start_time,
            event.end_time,
            event.current_time,
            event.usage,
            provenance,
            event.zone,
            message.header,
            event.extra,
        )
    )


def as_text(message: firefly.Firefly, registry: Registry) -> bytes:
    """One line for people."""
    event = message.event
    called = registry.names(event.tag)
    parts = [
        f"{event.state.value:<7} {event.key}",
        f"{called.experiment or event.tag.experiment}/{called.activity or event.tag.activity}",
    ]
    for name, instant in (("from", event.start_time), ("until", event.end_time)):
        if instant is not None:
            parts.append(f"{name} {format_instant(instant)}")
    if event.usage is not None:
        counts = (("sent", event.usage.sent), ("received", event.usage.received))
        parts += [f"{name} {octets:,}" for name, octets in counts if octets is not None]
    if event.application:
        parts.append(f"by {event.application}")
    return printable("  ".join(parts)).encode()


def _decode(arguments: argparse.Namespace) -> int:
    source = names.choose(arguments)
    registry = source.registry
    provenance = msgspec.Raw(json_line(source.provenance).encode())

    def answer(_: int, line: bytes) -> bytes:
        message = firefly.decode(line)
        return as_json(message, registry, provenance) if arguments.json else as_text(message, registry)

    if not arguments.json:
        names.tell(source)
    return lines.answer_each(arguments.file, answer, _nothing, longest=firefly.MAX_DATAGRAM, skip_blank=True)


def _nothing(_number: int, _line: bytes, _reason: str) -> None:
    """A line that is no firefly has no answer: what is printed is fireflies alone."""


# --- validate -----------------------------------------------------------------------------------


def _validate(arguments: argparse.Namespace) -> int:
    def answer(number: int, line: bytes) -> bytes:
        problems = firefly_schema.problems(line)
        if problems:
            raise FireflyError("; ".join(problems))
        if arguments.json:
            return json_line({"line": number, "valid": True, "problem": ""}).encode()
        return f"line {number}: valid".encode()

    def refusal(number: int, _: bytes, reason: str) -> bytes | None:
        return json_line({"line": number, "valid": False, "problem": reason}).encode() if arguments.json else None

    return lines.answer_each(arguments.file, answer, refusal, longest=firefly.MAX_DATAGRAM, skip_blank=True)


# --- encode -------------------------------------------------------------------------------------


def _encode(arguments: argparse.Namespace) -> int:
    now = datetime.now(UTC)

    def written(event: FlowEvent) -> bytes:
        message = encode(event, now, arguments.host)
        if not arguments.json:
            return message
        return json_line({"firefly": message.decode(), "octets": len(message)}).encode()

    if arguments.stream is None:
        print(written(decode_event(_from_options(arguments))).decode())
        return 0
    return lines.answer_each(
        arguments.stream,
        lambda _, line: written(decode_event(json_of(line))),
        _nothing,
        longest=firefly.MAX_DATAGRAM,
        skip_blank=True,
    )


def encode(event: FlowEvent, now: datetime, host: str) -> bytes:
    """The firefly of an event; what begins or ends without a time given does so now."""
    event = msgspec.structs.replace(
        event,
        start_time=event.start_time or (now if event.state is FlowState.START else None),
        end_time=event.end_time or (now if event.state is FlowState.END else None),
    )
    return firefly.encode(event, now=now, host=host, app=APPLICATION)


def _from_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as the JSON of one event, so that both are checked by the same rules."""
    missing = [option for option in _NEEDED if getattr(arguments, option) is None]
    if missing:
        options = ", ".join(f"--{option.replace('_', '-')}" for option in missing)
        arguments.parser.error(f"needs {options}; or - to read events from standard input")
    tag = _tag(arguments)
    members = {option: getattr(arguments, option) for option in (*_NEEDED, *_OPTIONAL)}
    usage = {name: getattr(arguments, name) for name in ("sent", "received") if getattr(arguments, name) is not None}
    if usage:
        members["usage"] = usage
    return {name: value for name, value in (members | tag).items() if value is not None}


def _tag(arguments: argparse.Namespace) -> dict[str, int]:
    pair = (arguments.experiment, arguments.activity)
    if (arguments.scitag is None) is (None in pair) or (arguments.scitag is not None and pair != (None, None)):
        arguments.parser.error("needs either --scitag, or --experiment and --activity")
    if arguments.scitag is not None:
        return {"scitag": arguments.scitag}
    if all(text.isascii() and text.isdigit() for text in pair):
        # No name, no registry: ids that nobody bears can be announced, too.
        experiment, activity = (tags.parse_number(text) for text in pair)
    else:
        experiment, activity = tags.find_tag(names.choose(arguments).registry, *pair)
    return {"experiment": experiment, "activity": activity}


_NEEDED = ("src", "src_port", "dst", "dst_port")
_OPTIONAL = ("state", "protocol", "start_time", "end_time", "application")
_INTEGERS = frozenset({"src_port", "dst_port"})


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags firefly`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("decode", "read fireflies, in any dialect"),
        ("validate", "check fireflies against the schema, to the letter"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("file", nargs="?", default=lines.STREAM, metavar="FILE", help="one message a line; or -")
        action.add_argument("--json", action="store_true", help="an object a line")
        if name == "decode":
            names.add_options(action)
    summary = "write a firefly, or one for each of our JSON events on standard input"
    action = actions.add_parser("encode", help=summary, description=summary)
    action.add_argument("stream", nargs="?", choices=[lines.STREAM], help="read events, a JSON object a line")
    action.add_argument("--json", action="store_true", help="an object with the message and its length")
    _add_event_options(action.add_argument)
    names.add_options(action)
    action.set_defaults(parser=action)


def _add_event_options(add: Callable[..., argparse.Action]) -> None:
    add("--state", default="start", choices=[one.value for one in FlowState])
    add("--protocol", default="tcp", choices=_TRANSPORTS)
    for option in _NEEDED:
        kind, metavar = (int, "PORT") if option in _INTEGERS else (str, "ADDRESS")
        add(f"--{option.replace('_', '-')}", type=kind, metavar=metavar)
    add("--scitag", type=int, metavar="N")
    for option in ("experiment", "activity"):
        add(f"--{option}", metavar="NAME_OR_ID")
    for option in ("start", "end"):
        add(f"--{option}-time", metavar="INSTANT", help=f"ISO 8601; now when the state is {option} and none is given")
    add("--application", metavar="TEXT", help="name and version of what moves the data")
    for option in ("sent", "received"):
        add(f"--{option}", type=int, metavar="OCTETS", help="as the source counts")
    add("--host", default=socket.gethostname(), metavar="NAME", help="the sender, default %(default)s")


COMMAND = Command("firefly", "read, write and check fireflies", configure, run)
