"""Writes down what comes, in a thread: a disk or a journal that has stopped stops nothing else."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

log = logging.getLogger(__name__)

CLOSE_SECONDS = 1.0

Append = Callable[[], tuple[int, OSError | None]]


class Sheet(Protocol):
    """What is written on. Its methods are called in one thread of their own and may block."""

    def append(self, entries: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Write entries: how many were written, and what kept out the rest."""

    def close(self) -> None:
        """Let go; append takes hold again."""


class Scribe:
    """A sheet, its thread, and what is counted: written, lost, errors.

    Trouble is said when it begins and when it is over, however long it lasts.
    """

    def __init__(self, sheet: Sheet, name: str) -> None:
        self.counters: Counter[str] = Counter(written=0, lost=0, errors=0)
        self._sheet = sheet
        self._name = name
        self._in_trouble = False
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Callable[[], None]] | None] = queue.SimpleQueue()
        # A daemon thread: one that waits for a dead disk must not keep the process from ending.
        threading.Thread(target=self._work, name=f"scribe {name}", daemon=True).start()

    async def write(self, entries: Sequence[bytes]) -> None:
        """Return when the entries are written, or counted as lost. Never raises OSError."""
        await self._done(lambda: self._append(entries))

    async def close(self) -> None:
        """Finish what was begun and let go of the sheet; not waited for beyond CLOSE_SECONDS."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._done(self._sheet.close)
        except TimeoutError:
            log.error("%s: still not written when the agent stopped", self._name)
        self._jobs.put(None)

    async def _done(self, job: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        finished = asyncio.Event()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(finished.set)

        self._jobs.put((job, tell))
        await finished.wait()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, tell = item
            try:
                job()
            except Exception:
                log.exception("%s: failed", self._name)
            tell()

    def _append(self, entries: Sequence[bytes]) -> None:
        written, error = self._sheet.append(entries)
        self.counters["written"] += written
        self.counters["lost"] += len(entries) - written
        if error is not None:
            self.counters["errors"] += 1
            if not self._in_trouble:
                log.warning("%s: %s (said once until it is over, counted from here)", self._name, error)
        elif self._in_trouble:
            log.warning("%s: written again; %d lost since the start", self._name, self.counters["lost"])
        self._in_trouble = error is not None
