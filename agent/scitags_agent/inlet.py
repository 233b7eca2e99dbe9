"""Where a source puts what it hears: counted by source, and passed on to the daemon."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from scitags_agent.fanout import Fanout
from scitags_core.flow import FlowEvent
from scitags_core.roles import Inheritance

log = logging.getLogger(__name__)

SETTLE_SECONDS = 1.0
REFUSALS_LOGGED = 20  # for each source; a peer that sends rubbish must not fill the disk
REASONS_COUNTED = 50  # for each source

# What errors.shown() has cut comes first, as it has no quote at its end; then whatever else a peer has chosen.
_CHOSEN = re.compile(
    r"b?[\"'\[{(].{118,119}\.\.\. \(\d+ characters\)"
    r"|(?<=unknown field )`.*`(?= in | - at )"
    r"|0x[0-9a-f]+|b?'(?:[^'\\]|\\.)*'|b?\"(?:[^\"\\]|\\.)*\"|-?\d+",
    re.DOTALL,
)
_OBJECT = re.compile(r"\{[^{}]*\}")


class Receiver(Protocol):
    """What takes in what all sources hear: the daemon, which says what each of these does."""

    fanout: Fanout

    def accept(self, events: Sequence[FlowEvent], source: str, position: bytes = b"") -> None: ...
    def inheritance_of(self, name: str) -> Inheritance: ...
    def status(self) -> dict[str, Any]: ...
    def flows(self, first: int = 0, limit: int | None = None) -> list[dict[str, Any]]: ...
    def prepare_to_match(self) -> None: ...
    async def match(
        self, event: FlowEvent, *, sent: float | None = None, is_redirected: bool = False
    ) -> FlowEvent | None: ...
    async def reload(self) -> str: ...
    def keep(self, name: str, descriptor: int | None) -> None: ...
    def take_kept(self, name: str) -> list[int]: ...


class Inlet:
    """The sink of one source (scitags_core.roles.EventSink)."""

    def __init__(self, name: str, receiver: Receiver) -> None:
        self.name = name
        self.counters: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._receiver = receiver

    def accept(self, event: FlowEvent) -> None:
        self.counters["accepted"] += 1
        self._receiver.accept((event,), self.name)

    def accept_many(self, events: Sequence[FlowEvent], position: bytes = b"") -> None:
        self.counters["accepted"] += len(events)
        self._receiver.accept(events, self.name, position)

    def refuse(self, reason: str) -> None:
        self.counters["refused"] += 1
        kind = reason_kind(reason)
        if kind not in self.reasons and len(self.reasons) >= REASONS_COUNTED:
            kind = "other"
        self.reasons[kind] += 1
        if self.counters["refused"] <= REFUSALS_LOGGED:
            log.warning("refused", extra={"fields": {"source": self.name, "reason": reason}})
        if self.counters["refused"] == REFUSALS_LOGGED:
            log.warning("source %s: further refusals are only counted", self.name)

    def count(self, name: str) -> None:
        self.counters[name] += 1

    async def settled(self) -> None:
        await self._receiver.fanout.drained(SETTLE_SECONDS)

    @property
    def is_crowded(self) -> bool:
        return self._receiver.fanout.is_crowded

    @property
    def inheritance(self) -> Inheritance:
        return self._receiver.inheritance_of(f"source {self.name}")

    def status(self) -> dict[str, Any]:
        return self._receiver.status()

    def prepare_to_match(self) -> None:
        self._receiver.prepare_to_match()

    async def match(
        self, event: FlowEvent, *, sent: float | None = None, is_redirected: bool = False
    ) -> FlowEvent | None:
        return await self._receiver.match(event, sent=sent, is_redirected=is_redirected)

    def flows(self, first: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        return self._receiver.flows(first, limit)

    async def reload(self) -> str:
        return await self._receiver.reload()

    def keep(self, descriptor: int | None) -> None:
        self._receiver.keep(f"source {self.name}", descriptor)

    def take_kept(self) -> list[int]:
        return self._receiver.take_kept(f"source {self.name}")


def reason_kind(reason: str) -> str:
    """A refusal's reason without the values that were bad: what is counted."""
    return _OBJECT.sub("…", _CHOSEN.sub("…", reason))[:120]
