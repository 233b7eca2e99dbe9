"""Records in a file: an object of JSON for each change of a flow, a line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from scitags_agent.line_file import LineFile
from scitags_agent.local_path import group_id, parse_mode
from scitags_agent.record import Recorder
from scitags_agent.scribe import Scribe
from scitags_core import settings as core_settings
from scitags_core.errors import ConfigError, shown
from scitags_core.flow import FlowChange
from scitags_core.roles import BackendKind, Inheritance


class JsonlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file.

    path          absolute; its directory must be there, and is waited for when it is not
    max_octets    a file that would become longer is put aside as path.1
    keep          how many are kept aside; 0: none
    mode, group   of the file, when it is made
    """

    path: str = "/var/log/scitags/flows.jsonl"
    max_octets: Annotated[int, msgspec.Meta(ge=1 << 12)] = 100 << 20
    keep: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 5
    mode: str = "0640"
    group: str = ""


class JsonlBackend:
    """The backend."""

    def __init__(self, settings: JsonlSettings) -> None:
        if not Path(settings.path).is_absolute():
            raise ConfigError(f"path {shown(settings.path)} is not absolute")
        mode, group = parse_mode(settings.mode), group_id(settings.group)
        self._file = LineFile(
            Path(settings.path), max_octets=settings.max_octets, keep=settings.keep, mode=mode, group=group
        )
        self._scribe: Scribe | None = None
        self._recorder: Recorder | None = None

    async def start(self, inheritance: Inheritance) -> None:  # noqa: ARG002
        self._recorder = Recorder(core_settings.load().registry.client().load().registry)
        self._scribe = Scribe(self._file, f"file {self._file.path}")
        # A file that cannot be had is said now, not at the first transfer.
        await self._scribe.write(())

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        assert self._recorder is not None
        assert self._scribe is not None
        now = datetime.now(UTC)
        await self._scribe.write([self._recorder.line(self._recorder.record(change, now)) for change in changes])

    async def close(self) -> None:
        if self._scribe is not None:
            await self._scribe.close()

    def counters(self) -> Mapping[str, int]:
        return self._scribe.counters if self._scribe else {}


KIND = BackendKind("jsonl", JsonlSettings, JsonlBackend)
