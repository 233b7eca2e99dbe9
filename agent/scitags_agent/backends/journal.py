"""Records in systemd's journal: an entry with SCITAGS_... fields for each change of a flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from scitags_agent.journal_socket import ADDRESS, JournalSocket
from scitags_agent.record import Recorder, journal_entry
from scitags_agent.scribe import Scribe
from scitags_core import settings as core_settings
from scitags_core.flow import FlowChange
from scitags_core.roles import BackendKind, Inheritance


class JournalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the journal listens: elsewhere in a container that is lent the socket, or for a namespace of journals."""

    socket: str = str(ADDRESS)


class JournalBackend:
    """The backend."""

    def __init__(self, settings: JournalSettings) -> None:
        self._socket = JournalSocket(Path(settings.socket))
        self._scribe: Scribe | None = None
        self._recorder: Recorder | None = None

    async def start(self, inheritance: Inheritance) -> None:  # noqa: ARG002
        self._recorder = Recorder(core_settings.load().registry.client().load().registry)
        self._scribe = Scribe(self._socket, f"journal {self._socket.address}")

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        assert self._recorder is not None
        assert self._scribe is not None
        now = datetime.now(UTC)
        await self._scribe.write(
            [journal_entry(self._recorder.record(change, now), change.event.key) for change in changes]
        )

    async def close(self) -> None:
        if self._scribe is not None:
            await self._scribe.close()

    def counters(self) -> Mapping[str, int]:
        return self._scribe.counters if self._scribe else {}


KIND = BackendKind("journal", JournalSettings, JournalBackend)
