"""Backends and enrichers that could not start: why, and when they are tried again.

At boot an agent may be there before the address that it sends from, or while somebody still has the port of the one
before: what it does without is shown, and comes when it can.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LAST_PAUSE_SECONDS = 60.0


class _Part(msgspec.Struct):
    why: str
    again: Callable[[], Awaitable[None]]
    pause: float
    due: float


class Absent:
    """The parts that are wanted and not there, by name."""

    def __init__(self) -> None:
        self._parts: dict[str, _Part] = {}
        self._changed = asyncio.Event()

    def add(self, name: str, why: str, again: Callable[[], Awaitable[None]]) -> None:
        """Note that a part could not start. again tries once more, and adds it anew when it fails again."""
        before = self._parts.get(name)
        if before is None:
            log.error("%s cannot start and is left out until it can: %s", name, why)
        pause = FIRST_PAUSE_SECONDS if before is None else min(2 * before.pause, LAST_PAUSE_SECONDS)
        self._parts[name] = _Part(why, again, pause, time.monotonic() + pause)
        self._changed.set()

    def clear(self) -> None:
        """Another configuration is there: what it wants is tried anew."""
        self._parts.clear()

    def shown(self) -> dict[str, str]:
        """Why each is not there."""
        return {name: part.why for name, part in self._parts.items()}

    async def keep_trying(self, lock: asyncio.Lock) -> None:
        """Try each again in its time, until cancelled. Whoever changes what is wanted holds the lock meanwhile."""
        while True:
            if not self._parts:
                self._changed.clear()
                await self._changed.wait()
            next_due = min(part.due for part in self._parts.values())
            await asyncio.sleep(max(0.0, next_due - time.monotonic()))
            async with lock:
                for name, part in list(self._parts.items()):
                    if part.due <= time.monotonic():
                        await self._try(name, part)

    async def _try(self, name: str, part: _Part) -> None:
        try:
            await part.again()
        except Exception as error:
            self.add(name, str(error), part.again)
            return
        if self._parts.get(name) is part:
            del self._parts[name]
            log.info("%s has started after all", name)
