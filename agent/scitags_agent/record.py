"""A change of a flow as a flat record: one object of JSON, or the fields of a journal entry. Pure."""

from __future__ import annotations

import struct
from datetime import datetime
from typing import Any

import msgspec

from scitags_core.flow import FlowChange, Usage
from scitags_core.flow_record import FlowRecord
from scitags_core.registry import Names, Registry
from scitags_core.tag import Tag

IDENTIFIER = "scitags-agent"
_PRIORITY_INFO = 6


class Record(FlowRecord, frozen=True, omit_defaults=True, gc=False):
    """One change. What has a default is left out where it says nothing.

    time           when the agent wrote the record; the other times are the flow's
    transfers      how many transfers use the 5-tuple after the change
    mark           the scitag that its packets bear from now on
    extra          further objects of a firefly, as they came
    """

    transfers: int
    mark: int | None = None
    application: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    usage: Usage | None = None
    id: str = ""
    extra: dict[str, Any] = {}


class Recorder:
    """Makes records with the names of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._names: dict[Tag, Names] = {}
        self._encoder = msgspec.json.Encoder()

    def record(self, change: FlowChange, now: datetime) -> Record:
        """The record of a change that is written down at this moment."""
        event = change.event
        names = self._names.get(event.tag)
        if names is None:
            names = self._names[event.tag] = self._registry.names(event.tag)
        return Record.of(
            now,
            event,
            names,
            change.users,
            change.mark.experiment << 6 | change.mark.activity if change.mark else None,
            event.application,
            event.start_time,
            event.end_time,
            event.usage,
            event.transfer_id,
            event.extra,
        )

    def line(self, record: Record) -> bytes:
        """The record as an object of JSON in a line of its own."""
        return self._encoder.encode(record) + b"\n"


def journal_entry(record: Record, key: object) -> bytes:
    """The record as systemd's journal takes it (its native protocol): MESSAGE for people, SCITAGS_... for queries.

    key is the flow's, as people read it.
    """
    experiment = record.experiment or record.experiment_id
    activity = record.activity or record.activity_id
    fields: dict[str, object] = {
        "MESSAGE": f"{record.state} {key} {experiment}/{activity}",
        "PRIORITY": _PRIORITY_INFO,
        "SYSLOG_IDENTIFIER": IDENTIFIER,
    }
    fields |= {
        f"SCITAGS_{name.upper()}": value
        for name, value in msgspec.to_builtins(record, builtin_types=(datetime,)).items()
        if value is not None and name not in ("time", "usage", "extra")
    }
    if record.usage is not None:
        fields |= {"SCITAGS_SENT": record.usage.sent, "SCITAGS_RECEIVED": record.usage.received}
    return b"".join(_journal_field(name, value) for name, value in fields.items() if value is not None)


def _journal_field(name: str, value: object) -> bytes:
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    content = text.encode("utf-8", "replace")
    if b"\n" in content:  # a value of several lines is preceded by its length
        return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(content)), content)
    return b"%s=%s\n" % (name.encode(), content)
