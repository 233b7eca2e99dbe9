"""Which TCP connections the kernel shall label itself: they are put before it, and it is seen when it has begun.

The walk over the sockets that this takes costs milliseconds. It is made in a thread, for many connections at once, and
so seldom that it takes a small part of a processor at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from scitags_agent.bpf.kernel_label import KernelLabels, SocketReport, SocketState
from scitags_agent.bpf.namespaces import entered
from scitags_agent.expectations import Expectations
from scitags_core.flow import FlowKey

if TYPE_CHECKING:
    from scitags_agent.namespaces import Finder

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.1  # most short transfers are over by then, and have cost nothing
SOON_SECONDS = 0.002
WAITING_SECONDS = 0.1  # until the next look at sockets that are not settled; doubled each time
WAITING_SECONDS_MAX = 5.0
PUTS_A_ROUND = 2000  # each a system call, made where flow events wait
WALKS_SHARE = 10  # a walk is followed by so many times as long without one

Wanted = tuple[Iterable[bytes], int]


class SocketLabels:
    """Puts connections before the kernel.

    wanted(name) says which keys (layout.pack_key) and which label, None for a connection that is over.
    begun(name, key, label_word) is called when the kernel writes a label, and may be called again.
    refused(name, key, state) likewise when it does not.
    """

    def __init__(
        self,
        kernel: KernelLabels,
        namespaces: Sequence[str],
        wanted: Callable[[FlowKey], Wanted | None],
        begun: Callable[[FlowKey, bytes, int], None],
        refused: Callable[[FlowKey, bytes, SocketState], None],
    ) -> None:
        self._kernel = kernel
        self._namespaces: Finder | None = None
        if namespaces:
            from scitags_agent.namespaces import Finder  # noqa: PLC0415  # few agents need it

            self._namespaces = Finder(namespaces)
        self._wanted = wanted
        self._begun = begun
        self._refused = refused
        self._offered: deque[tuple[float, FlowKey]] = deque()  # when each has lasted for a moment, the next first
        self._names: dict[bytes, FlowKey] = {}
        self._unsettled: set[bytes] = set()  # those whose socket is not there yet, or has sent nothing since
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.Task[None] | None = None
        self._is_changed = False
        self._walked: asyncio.Future[None] | None = None  # done when all that was put until now has been walked to
        self._waiting = WAITING_SECONDS
        self._next_walk = 0.0
        self._closing = False
        self.counters: Counter[str] = Counter()
        self.expectations = Expectations(kernel, self._walk_soon, self.counters)
        # A thread of our own, as it is in the network namespace in which it was made, whoever leaves that meanwhile.
        self._walker = ThreadPoolExecutor(1, "scitags-walk")

    async def start(self) -> None:
        """Walk once, to see that it can be done. Raises OSError; there is nothing to close then."""
        try:
            await self._walk_in_thread()
        except OSError:
            self._walker.shutdown()
            self._kernel.close()
            raise

    def set_place(self, namespace: int, cookie: int, place: int) -> None:
        """As of KernelLabels; nothing happens after close(), when a look at namespaces may still be under way.

        Raises OSError.
        """
        if self._closing:
            return
        self._kernel.set_place(namespace, cookie, place)
        self._walk_soon()

    def offer(self, name: FlowKey) -> None:
        """A connection that began; the kernel is asked for its label when it has lasted for a moment.

        At once, when it was expected: the kernel labels it then already.
        """
        if self.expectations.is_adopted(name):
            self.put(name)
            return
        self._offered.append((time.monotonic() + PATIENCE_SECONDS, name))
        if self._timer is None and self._round is None:
            self._look_in(PATIENCE_SECONDS)

    def put(self, name: FlowKey) -> bool:
        """Ask at once, or for another label than before; whether the connection is still under way."""
        wanted = self._wanted(name)
        if wanted is None:
            return False
        keys, label = wanted
        for key in keys:
            try:
                self._kernel.put(key, label)
            except OSError as error:
                self.counters["kernel_refused_label"] += 1
                if self.counters["kernel_refused_label"] == 1:
                    log.error("%s: the kernel does not take its label: %s (said once, counted from here)", name, error)
                continue
            self._names[key] = name
            self._unsettled.add(key)
            self._is_changed = True
        self.expectations.confirm(name)
        self._hurry()
        return True

    async def walked(self) -> None:
        """Return when the sockets of all that was put are known to the kernel, after PATIENCE_SECONDS at the latest.

        What an open connection sends from then on bears its label.
        """
        if self._is_changed:
            if self._walked is None:
                self._walked = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._walked,), timeout=PATIENCE_SECONDS)

    def remove(self, keys: Iterable[bytes]) -> None:
        """Of these connections, no label any more."""
        for key in keys:
            if self._names.pop(key, None) is not None:
                self._kernel.remove(key)
                self._unsettled.discard(key)
                self._is_changed = True
        self._hurry()

    async def close(self, *, give_back: float) -> None:
        """Wait for so many seconds for sockets to give their labels back (0: they keep them), and end."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._round is not None:
            await asyncio.gather(self._round, return_exceptions=True)
        deadline = time.monotonic() + give_back
        is_expected = self.expectations.close()
        if give_back and (self._names or is_expected):
            self.remove(list(self._names))
            while time.monotonic() < deadline:
                if not any(one.state == SocketState.WAITING for one in await self._walk_in_thread()):
                    break
                await asyncio.sleep(WAITING_SECONDS)
        self._walker.shutdown()
        self._kernel.close()

    def _walk_soon(self) -> None:
        """A label is where it does not belong: that is not put off."""
        self._next_walk = 0.0
        self._is_changed = True
        self._hurry()

    def _hurry(self) -> None:
        if self._is_changed and self._round is None and not self._closing:
            self._look_in(SOON_SECONDS)

    def _look_in(self, seconds: float) -> None:
        """Have a round then, or sooner when one is due already."""
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._begin_round)

    def _begin_round(self) -> None:
        self._timer = None
        now = time.monotonic()
        puts = 0
        while self._offered and self._offered[0][0] <= now and puts < PUTS_A_ROUND:
            puts += self.put(self._offered.popleft()[1])
        wait = self._next_walk - now
        if not self._is_changed and not self._unsettled:
            self._plan()  # there is nothing to look for
        elif wait > 0:
            self._look_in(wait)
        else:
            self._round = asyncio.create_task(self._walk_and_tell())

    async def _walk_and_tell(self) -> None:
        self._is_changed = False
        walked, self._walked = self._walked, None
        began = time.monotonic()
        reports: list[SocketReport] = []
        try:
            reports = await self._walk_in_thread()
        except OSError as error:
            self.counters["kernel_failed_walks"] += 1
            if self.counters["kernel_failed_walks"] == 1:
                log.error("the sockets cannot be looked at: %s (said once, counted from here)", error)
        finally:
            self._round = None
            if walked is not None:
                walked.set_result(None)
        now = time.monotonic()
        self._next_walk = now + WALKS_SHARE * (now - began)
        for report in reports:
            name = self._names.get(report.key)
            if name is not None and report.state != SocketState.WAITING:
                if not self._is_changed:
                    self._unsettled.discard(report.key)
                if report.state == SocketState.LABELLED:
                    self._begun(name, report.key, report.label)
                elif report.state != SocketState.GIVEN_BACK:
                    self._refused(name, report.key, report.state)
        if not self._closing:
            self._plan()

    def _plan(self) -> None:
        """When to look next."""
        if self._unsettled and not self._is_changed:
            self._look_in(self._waiting)
            self._waiting = min(2 * self._waiting, WAITING_SECONDS_MAX)
        else:
            self._waiting = WAITING_SECONDS
        if self._is_changed:
            self._look_in(SOON_SECONDS)
        elif self._offered:
            self._look_in(max(SOON_SECONDS, self._offered[0][0] - time.monotonic()))

    def _walk_in_thread(self) -> asyncio.Future[list[SocketReport]]:
        return asyncio.get_running_loop().run_in_executor(self._walker, self._walk)

    def _walk(self) -> list[SocketReport]:
        reports = []
        for place in ("", *(self._namespaces.paths() if self._namespaces is not None else ())):
            try:
                with entered(place):
                    reports += self._kernel.walk()
            except OSError:
                if not place:
                    raise
                # A namespace that has gone has taken its sockets with it.
        return reports
