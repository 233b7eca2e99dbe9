"""A sink that keeps what a source hands over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from scitags_core.flow import FlowEvent
from scitags_core.roles import Inheritance


class Sink:
    """The agent's side of a source, as far as a source can see it."""

    def __init__(self) -> None:
        self.events: list[FlowEvent] = []
        self.refused: list[str] = []
        self.counters: Counter[str] = Counter()
        self.position = b""
        self.inheritance = Inheritance()
        self.is_crowded = False
        self.kept: int | None = None

    def accept(self, event: FlowEvent) -> None:
        self.events.append(event)

    def accept_many(self, events: Sequence[FlowEvent], position: bytes = b"") -> None:
        self.events += events
        self.position = position

    def refuse(self, reason: str) -> None:
        self.refused.append(reason)

    def count(self, name: str) -> None:
        self.counters[name] += 1

    async def settled(self) -> None:
        await asyncio.sleep(0)

    def status(self) -> dict[str, Any]:
        return {"backends": {}}

    def flows(self, first: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        return []

    def prepare_to_match(self) -> None:
        pass

    async def match(
        self, event: FlowEvent, *, sent: float | None = None, is_redirected: bool = False
    ) -> FlowEvent | None:
        return event

    async def reload(self) -> str:
        return ""

    def keep(self, descriptor: int | None) -> None:
        self.kept = descriptor

    def take_kept(self) -> list[int]:
        return []
