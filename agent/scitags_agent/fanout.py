"""A queue and a task for each backend, so that a slow or broken one harms no other."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from typing import Any

from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.roles import Backend

log = logging.getLogger(__name__)

BATCH = 512


class Lane:
    """One backend with its queue.

    limit is in changes. What comes beyond it is dropped and counted, but for ends: a start that is not acted on
    costs a mark, an end that is not acted on leaves one where it is wrong. Of a flow whose start was dropped the
    end is, too, so that ends are never more than what the backend has been told of.
    """

    def __init__(self, name: str, backend: Backend, limit: int) -> None:
        self.name = name
        self.backend = backend
        self.counters: Counter[str] = Counter()
        self._limit = limit
        self._queue: deque[FlowChange] = deque()
        self._dropped_starts: Counter[FlowKey] = Counter()
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._complained: set[type[Exception]] = set()

    def put(self, change: FlowChange) -> None:
        """Queue a change, or drop and count it."""
        if self._is_to_be_dropped(change.event):
            self.counters["dropped"] += 1
            if self.counters["dropped"] == 1:
                log.error("backend %s is too slow: changes are dropped from its queue of %d", self.name, self._limit)
            return
        self._queue.append(change)
        self._idle.clear()
        self._filled.set()

    def _is_to_be_dropped(self, event: FlowEvent) -> bool:
        if event.state is FlowState.END:
            if event.key not in self._dropped_starts:
                return False
            self._dropped_starts[event.key] -= 1
            if not self._dropped_starts[event.key]:
                del self._dropped_starts[event.key]
            return True
        if len(self._queue) < self._limit:
            return False
        if event.state is FlowState.START:
            self._dropped_starts[event.key] += 1
        return True

    async def run(self) -> None:
        """Hand the queue to the backend, until cancelled."""
        while True:
            await self._filled.wait()
            # No pause between batches: what a source brings next waits in the kernel meanwhile, and a
            # writer that outruns us is slowed down rather than dropped.
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                try:
                    await self.backend.handle(batch)
                except Exception as error:
                    self.counters["failed"] += len(batch)
                    self._complain(error)
            self._filled.clear()
            self._idle.set()

    async def drained(self) -> None:
        """Return when nothing is queued or in work."""
        await self._idle.wait()

    def status(self) -> dict[str, Any]:
        """Counters, our own and the backend's."""
        own = {"queued": len(self._queue), "dropped": self.counters["dropped"], "failed": self.counters["failed"]}
        return own | dict(self.backend.counters())

    def _complain(self, error: Exception) -> None:
        if type(error) not in self._complained:
            self._complained.add(type(error))
            log.error("backend %s failed: %s", self.name, error, exc_info=error)


class Fanout:
    """All lanes together."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, lane: Lane) -> None:
        """Take a lane in and start its task; the backend has been started."""
        self.lanes.append(lane)
        self._tasks.append(asyncio.create_task(lane.run(), name=f"backend {lane.name}"))

    def put(self, change: FlowChange) -> None:
        """Hand a change to every lane."""
        for lane in self.lanes:
            lane.put(change)

    async def drained(self, timeout: float) -> bool:  # noqa: ASYNC109  (a bound, not a cancellation)
        """Wait until every lane is, for at most timeout seconds; whether they all were."""
        waits = [asyncio.ensure_future(lane.drained()) for lane in self.lanes]
        if not waits:
            return True
        _, late = await asyncio.wait(waits, timeout=timeout)
        for wait in late:
            wait.cancel()
        return not late

    async def close(self) -> None:
        """Stop the tasks and close the backends; one that fails at it keeps no other from closing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self.lanes:
            try:
                await lane.backend.close()
            except Exception:
                log.exception("backend %s failed to close", lane.name)
