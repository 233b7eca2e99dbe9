"""Fireflies as they are seen, a flat object of JSON each, in the terms of the agent's records: for `scitags report`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from scitags_collector.observation import NANOSECONDS
from scitags_core.errors import ScitagsError
from scitags_core.firefly import Firefly
from scitags_core.flow import Usage
from scitags_core.flow_record import FlowRecord
from scitags_core.registry import Registry


class LogUnavailable(ScitagsError):
    """The file cannot be written; the message says why."""


class _Line(FlowRecord, frozen=True, omit_defaults=True, gc=False):
    """time is when the firefly was seen; host is who sent it, by its own word; the other times are the flow's."""

    host: str = ""
    application: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    current_time: datetime | None = None
    usage: Usage | None = None
    extra: dict[str, Any] = {}


class FireflyLog:
    """The file. Lines are there as soon as they are written."""

    def __init__(self, path: Path, registry: Registry) -> None:
        """Begin the file anew. Raises LogUnavailable."""
        self._registry = registry
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise LogUnavailable(f"{path}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, time_ns: int, message: Firefly) -> None:
        """Write one that was seen at this time, in nanoseconds since 1970."""
        event, header = message.event, message.header
        line = _Line.of(
            datetime.fromtimestamp(time_ns / NANOSECONDS, UTC),
            event,
            self._registry.names(event.tag),
            (header.host or "") if header else "",
            event.application,
            event.start_time,
            event.end_time,
            event.current_time,
            event.usage,
            event.extra,
        )
        self._file.write(msgspec.json.encode(line) + b"\n")
