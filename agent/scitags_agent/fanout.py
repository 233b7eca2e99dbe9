"""A queue and a task for each backend, so that a slow or broken one harms no other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from scitags_agent.mapped import MappedNumber
from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.roles import Backend, ExpectsConnections, TellsMarks

log = logging.getLogger(__name__)

BATCH = 2048
CROWDED = 8192  # changes in a queue from which on sources that can wait are asked to
PATIENCE_SECONDS = 1.0


class Lane:
    """One backend with its queue.

    limit is in changes. What comes beyond it is dropped and counted, but for ends: a start that is not acted on
    costs a mark, an end that is not acted on leaves one where it is wrong. Of a flow whose start was dropped the
    end is, too, so that ends are never more than what the backend has been told of.
    done is where the serial of the last change that was dealt with is written, for the time after a kill.
    """

    def __init__(self, name: str, backend: Backend, limit: int, done: MappedNumber | None = None) -> None:
        self.name = name
        self.backend = backend
        # Asked once, as it takes long, and a connection may be about to come.
        self.expects = backend if isinstance(backend, ExpectsConnections) else None
        self.counters: Counter[str] = Counter()
        self._limit = limit
        self._done = done
        self._crowded_from = min(CROWDED, limit // 2 + 1)
        self._crowded_since: float | None = None
        self._working: list[FlowChange] = []
        self._queue: deque[FlowChange] = deque()
        self._dropped_starts: Counter[FlowKey] = Counter()
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._complained: set[type[Exception]] = set()

    def put(self, changes: Sequence[FlowChange]) -> None:
        """Queue changes; what there is no room for is dropped and counted."""
        if len(self._queue) + len(changes) <= self._limit and not self._dropped_starts:
            self._queue.extend(changes)
        else:
            for change in changes:
                if self._is_to_be_dropped(change.event):
                    self._drop()
                else:
                    self._queue.append(change)
        if self._queue:
            self._idle.clear()
            self._filled.set()

    def put_again(self, changes: Sequence[FlowChange]) -> None:
        """Queue what an earlier agent had accepted, and this backend had not yet dealt with then."""
        behind = self._done.value if self._done is not None else 0
        self.put([change for change in changes if change.serial > behind])

    def outstanding(self) -> list[FlowChange]:
        """What is queued or in work, and would be told again after a kill."""
        return [change for change in (*self._working, *self._queue) if change.serial]

    def _drop(self) -> None:
        self.counters["dropped"] += 1
        if self.counters["dropped"] == 1:
            log.error("backend %s is too slow: changes are dropped from its queue of %d", self.name, self._limit)

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

    @property
    def is_crowded(self) -> bool:
        """Whether more is queued than sources should add to, if they can help it.

        A backend that does not get its queue worked off while they wait loses the right to make them, until it has:
        a slow one shall stall nobody.
        """
        if len(self._queue) < self._crowded_from:
            self._crowded_since = None
            return False
        now = time.monotonic()
        if self._crowded_since is None:
            self._crowded_since = now
        return now - self._crowded_since < PATIENCE_SECONDS

    async def run(self) -> None:
        """Hand the queue to the backend, until cancelled."""
        while True:
            await self._filled.wait()
            # No pause between batches: what a source brings next waits in the kernel meanwhile, and a
            # writer that outruns us is slowed down rather than dropped.
            while self._queue:
                batch = self._next_batch()
                self._working = batch
                try:
                    await self.backend.handle(batch)
                except Exception as error:
                    self.counters["failed"] += len(batch)
                    self._complain(error)
                self._working = []
                if self._done is not None:
                    self._done.value = max(self._done.value, last_serial(batch))
                if not self._queue:
                    break
                # Others have their turn, a source among them: what it brings makes the next batch larger.
                await asyncio.sleep(0)
            self._filled.clear()
            self._idle.set()

    def _next_batch(self) -> list[FlowChange]:
        if len(self._queue) > BATCH:
            return [self._queue.popleft() for _ in range(BATCH)]
        batch = list(self._queue)
        self._queue.clear()
        return batch

    async def drained(self) -> None:
        """Return when nothing is queued or in work."""
        await self._idle.wait()

    def status(self) -> dict[str, Any]:
        """Counters, our own and the backend's."""
        own = {"queued": len(self._queue), "dropped": self.counters["dropped"], "failed": self.counters["failed"]}
        return own | dict(self.backend.counters())

    async def close(self) -> None:
        """Close the backend, and let go of where its serial is written."""
        try:
            await self.backend.close()
        except Exception:
            log.exception("backend %s failed to close", self.name)
        if self._done is not None:
            self._done.close()

    def _complain(self, error: Exception) -> None:
        if type(error) not in self._complained:
            self._complained.add(type(error))
            log.error("backend %s failed: %s", self.name, error, exc_info=error)


def last_serial(changes: Sequence[FlowChange]) -> int:
    """The serial up to which the changes go; they are in order, but for those without one (0)."""
    return next((change.serial for change in reversed(changes) if change.serial), 0)


class Fanout:
    """All lanes together."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def add(self, lane: Lane, again: Sequence[FlowChange] = ()) -> None:
        """Take a lane in and start its task; the backend has been started. again is as for Lane.put_again."""
        lane.put_again(again)
        self.lanes.append(lane)
        # Packets do not wait; whoever tells of flows can.
        self.lanes.sort(key=lambda one: not isinstance(one.backend, TellsMarks))
        self._tasks[lane.name] = asyncio.create_task(lane.run(), name=f"backend {lane.name}")

    async def remove(self, name: str, timeout: float) -> None:  # noqa: ASYNC109  (a bound, not a cancellation)
        """Work off the lane of that name for at most timeout seconds, and close its backend."""
        for lane in [lane for lane in self.lanes if lane.name == name]:
            self.lanes.remove(lane)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(lane.drained(), timeout)
            task = self._tasks.pop(name)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await lane.close()

    def put(self, changes: Sequence[FlowChange]) -> None:
        """Hand changes to every lane."""
        for lane in self.lanes:
            lane.put(changes)

    @property
    def is_crowded(self) -> bool:
        """Whether a source that can wait should."""
        return any(lane.is_crowded for lane in self.lanes)

    def outstanding(self) -> list[FlowChange]:
        """What some lane has still to do, in order."""
        by_serial = {change.serial: change for lane in self.lanes for change in lane.outstanding()}
        return [by_serial[serial] for serial in sorted(by_serial)]

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
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for lane in self.lanes:
            await lane.close()
