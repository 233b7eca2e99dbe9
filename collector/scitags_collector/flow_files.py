"""Fireflies and records of flows as they were collected, whatever wrote the file, as events.

What is read, each a line: records of the agent's backend jsonl, those of `scitags observe --fireflies`, what `scitags
firefly decode --json` prints, fireflies as they came over the wire (also as rsyslog writes them, and without their
syslog header); and the one object of `scitags observe --json`. Files may be mixed, and compressed by gzip.
"""

from __future__ import annotations

import contextlib
import gzip
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec

from scitags_core import firefly
from scitags_core.errors import FlowEventError, PeerDataError, ScitagsError
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage, check_tag
from scitags_core.flow_json import decode_event

STANDARD_INPUT = Path("-")
LONGEST = 1 << 30  # octets of a line: the object of an observer is one
_GZIP_MAGIC = b"\x1f\x8b"

Refuse = Callable[[str], None]


class FileUnreadable(PeerDataError):
    """A file that is not there or cannot be read; the message says why."""


class Told(NamedTuple):
    """An event, when it was seen or written down (None: not said), and who reported it."""

    event: FlowEvent
    seen: datetime | None
    reporter: str


class _Syslog(msgspec.Struct):
    host: str = ""


class _Record(msgspec.Struct):
    """The members that records of the three kinds have in common, where they have them."""

    state: FlowState
    src: str
    src_port: int
    dst: str
    dst_port: int
    experiment_id: int
    activity_id: int
    protocol: str = "tcp"
    application: str = ""
    time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    current_time: datetime | None = None
    usage: Usage | None = None
    id: str = ""
    host: str = ""
    syslog: _Syslog | None = None


class _Observation(msgspec.Struct):
    fireflies: list[dict[str, Any]]


_decode_line = msgspec.json.Decoder(_Record | None, strict=True).decode


def read(path: Path, refuse: Refuse) -> Iterator[Told]:
    """The events of a file, "-" is standard input. A line that tells of none is handed to refuse, with the reason.

    Raises FileUnreadable.
    """
    name = "standard input" if path == STANDARD_INPUT else str(path)
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                try:
                    yield from _events(line, name)
                except ScitagsError as error:
                    refuse(f"{name}, line {number}: {error}")
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileUnreadable(f"{name}: {reason}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    with path.open("rb") as file:
        if file.peek(len(_GZIP_MAGIC))[: len(_GZIP_MAGIC)] != _GZIP_MAGIC:
            yield file
            return
        with gzip.open(file) as inside:
            yield cast("BinaryIO", inside)


def _events(line: bytes, name: str) -> Iterator[Told]:
    try:
        record = _decode_line(line)
    except msgspec.DecodeError:  # also what is JSON of another form
        record = None
    except UnicodeDecodeError as error:
        raise FlowEventError(f"neither a record nor a firefly: {error}") from None
    if record is not None:
        yield Told(_event(record), record.time, record.host or (record.syslog.host if record.syslog else "") or name)
    elif line.lstrip()[:1] == b"{" and b'"fireflies"' in line:
        yield from _of_observer(line, name)
    else:
        message = firefly.decode(line.strip())
        header = message.header
        yield Told(message.event, header.timestamp if header else None, (header.host if header else "") or name)


def _event(record: _Record) -> FlowEvent:
    return FlowEvent(
        state=record.state,
        key=FlowKey.of(record.src, record.src_port, record.dst, record.dst_port, record.protocol),
        tag=check_tag(record.experiment_id, record.activity_id),
        start_time=record.start_time,
        end_time=record.end_time,
        current_time=record.current_time,
        application=record.application,
        usage=record.usage,
        transfer_id=record.id,
    )


def _of_observer(line: bytes, name: str) -> Iterator[Told]:
    try:
        items = msgspec.json.decode(line, type=_Observation).fireflies
    except msgspec.DecodeError as error:
        raise FlowEventError(f"no report of an observer: {error}") from None
    for item in items:
        # The names are there for the reader's sake; the codec of events does not know them.
        own = {key: value for key, value in item.items() if key not in ("experiment_name", "activity_name")}
        yield Told(decode_event(own), None, name)
