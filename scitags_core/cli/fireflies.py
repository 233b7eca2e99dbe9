"""`scitags firefly`: decode, encode, validate. One message a line."""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from scitags_core import firefly, firefly_schema
from scitags_core.cli import names
from scitags_core.cli.output import count_text, json_line
from scitags_core.errors import FlowEventError, ScitagsError
from scitags_core.flow import FlowEvent, FlowState
from scitags_core.flow_json import decode_event, json_of
from scitags_core.instant import format_instant
from scitags_core.registry import Registry
from scitags_core.roles import Command

STREAM = "-"
APPLICATION = "scitags"


def run(arguments: argparse.Namespace) -> int:
    """`scitags firefly ACTION`."""
    return {"decode": _decode, "encode": _encode, "validate": _validate}[arguments.action](arguments)


def _decode(arguments: argparse.Namespace) -> int:
    source = names.choose(arguments)
    present = as_json if arguments.json else as_text

    def answer(line: bytes) -> str:
        return present(firefly.decode(line), source.registry)

    return _each_line(arguments.file, answer)


def _validate(arguments: argparse.Namespace) -> int:
    def answer(line: bytes) -> str:
        problems = firefly_schema.problems(line)
        if problems:
            raise FlowEventError("; ".join(problems))
        return json_line({"valid": True}) if arguments.json else "valid"

    return _each_line(arguments.file, answer)


def _encode(arguments: argparse.Namespace) -> int:
    now = datetime.now(UTC)

    def written(event: FlowEvent) -> str:
        return encode(event, now).decode()

    if arguments.stream == STREAM:
        return _each_line(STREAM, lambda line: written(decode_event(json_of(line))))
    needed = ("src", "src_port", "dst", "dst_port")
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(arguments, name) is None]
    if arguments.scitag is None and (arguments.experiment is None or arguments.activity is None):
        missing.append("--scitag, or --experiment and --activity")
    if missing:
        arguments.parser.error(f"needs {', '.join(missing)}; or - to read events from input")
    members = {name: getattr(arguments, name) for name in EVENT_OPTIONS}
    print(written(decode_event({name: value for name, value in members.items() if value is not None})))
    return 0


def encode(event: FlowEvent, now: datetime) -> bytes:
    """The firefly of an event; times that it lacks are taken as now."""
    event = msgspec.structs.replace(
        event,
        start_time=event.start_time or now,
        end_time=event.end_time or (now if event.state is FlowState.END else None),
    )
    return firefly.encode(event, now=now, host=socket.gethostname(), app=APPLICATION)


def as_json(message: firefly.Firefly, registry: Registry) -> str:
    """All that a firefly says, with the registry's names, as an object of our own form."""
    event, key = message.event, message.event.key
    called = registry.names(event.tag)
    content: dict[str, Any] = {
        "state": event.state.value,
        "protocol": key.protocol,
        "src": key.src,
        "src_port": key.src_port,
        "dst": key.dst,
        "dst_port": key.dst_port,
        "experiment_id": event.tag.experiment,
        "activity_id": event.tag.activity,
        "experiment": called.experiment,
        "activity": called.activity,
        "application": event.application,
        "start_time": event.start_time,
        "end_time": event.end_time,
        "current_time": event.current_time,
        "usage": event.usage,
    }
    if event.zone:
        content["zone"] = event.zone
    if message.header is not None:
        content["syslog"] = message.header
    if event.extra:
        content["extra"] = event.extra
    return json_line(content)


def as_text(message: firefly.Firefly, registry: Registry) -> str:
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
        parts += [
            f"{n} {getattr(event.usage, n):,}" for n in ("sent", "received") if getattr(event.usage, n) is not None
        ]
    if event.application:
        parts.append(f"by {event.application}")
    return "  ".join(parts)


def _each_line(file: str, answer: Callable[[bytes], str]) -> int:
    """Answer each line that is not blank; bad ones are named by number on standard error and make the status 1."""
    bad = total = 0
    with _opened(file) as lines:
        for number, line in enumerate(lines, 1):
            bare = line.rstrip(b"\r\n")
            if not bare.strip():
                continue
            total += 1
            try:
                sys.stdout.write(answer(bare) + "\n")
            except ScitagsError as error:
                bad += 1
                print(f"line {number}: {error}", file=sys.stderr)
    if bad:
        print(f"scitags: {count_text(bad, 'bad line')} of {total:,}", file=sys.stderr)
    return 1 if bad else 0


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == STREAM:
        yield sys.stdin.buffer
        return
    try:
        with Path(file).open("rb") as opened:
            yield opened
    except OSError as error:
        if error.filename is None:
            raise
        raise FlowEventError(f"{file}: {error.strerror}") from None


EVENT_OPTIONS = (
    "state",
    "protocol",
    "src",
    "src_port",
    "dst",
    "dst_port",
    "scitag",
    "experiment",
    "activity",
    "start_time",
    "end_time",
    "application",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags firefly`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("decode", "read fireflies, in any dialect"),
        ("validate", "check fireflies against the schema, to the letter"),
    ):
        action = actions.add_parser(name, help=summary)
        action.add_argument("file", nargs="?", default=STREAM, metavar="FILE", help="one message a line; - is input")
        action.add_argument("--json", action="store_true", help="an object a line")
        if name == "decode":
            names.add_options(action)
    action = actions.add_parser("encode", help="write a firefly, or one for each of our JSON events on input")
    action.add_argument("stream", nargs="?", choices=[STREAM], help="read events from input")
    action.add_argument("--json", action="store_true", help="accepted everywhere; a firefly is JSON already")
    integers = ("src_port", "dst_port", "scitag", "experiment", "activity")
    for name in EVENT_OPTIONS:
        option = f"--{name.replace('_', '-')}"
        if name == "state":
            action.add_argument(option, default="start", choices=[one.value for one in FlowState])
        elif name == "protocol":
            action.add_argument(option, default="tcp", choices=["tcp", "udp"])
        elif name in integers:
            action.add_argument(option, type=int, metavar="N")
        else:
            action.add_argument(option, metavar="TEXT")
    action.set_defaults(parser=action)


COMMAND = Command("firefly", "read, write and check fireflies", configure, run)
