"""The tag in an IPv6 Destination Options or Hop-by-Hop header of each packet.

Three ways, the best that can be had for each flow:

    on its socket       the option is set on the live socket of the transfer (scitags_agent.socket_headers). The kernel
                        writes it into every packet and leaves room for it in each segment; no program runs
    at tc, with room    a program puts it in (scitags_agent.tc_headers), and a route of the destination alone has the
                        kernel leave the room
    at tc, what fits    the same without a route: what has no room goes without

While a flow's socket is looked for, it is at tc. What an application has set itself stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import msgspec

from scitags_agent import passed_sockets
from scitags_agent.bpf.attach import Way
from scitags_agent.bpf.header_program import Header
from scitags_agent.bpf.interfaces import check_pattern
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_agent.bpf.loader import DEFAULT_MAX_FLOWS
from scitags_agent.connections import Lookup
from scitags_agent.eased_sockets import EasedSockets
from scitags_agent.inet_diag import SockDiagError
from scitags_agent.socket_headers import Job, Outcome, SocketHeaders
from scitags_agent.tc_headers import TcHeaders, TcSettings
from scitags_agent.unmarked import shown_reason, why_unmarked
from scitags_core.flow import FlowChange, FlowKey
from scitags_core.roles import KEEP, BackendKind, FlowMark, Inheritance
from scitags_core.tag import Tag

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.02  # a start may come before its connection
LAST_RETRY_SECONDS = 5.0
PATIENCE_SECONDS = 0.25  # between two looks for a socket, from which on room is kept free for its flow
AT_ONCE = 256
FIRST_LOOK_SECONDS = 0.1  # for which whoever reports flows waits at most

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Mode = Literal["auto", "socket", "tc", "tc-unreserved"]


class ExtensionHeaderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which header, and how.

    header        destination-options, hop-by-hop, or both. Routers look at Hop-by-Hop, and many drop it
    mode          socket: on the live socket alone. tc: by the program, room kept free by a route of the destination.
                  tc-unreserved: by the program, where there is room. auto: the best that can be had for each flow
    interfaces    of the program: as of the marker
    attach        of the program: as of the marker
    namespaces    network namespaces besides the agent's own, by path or by the name that `ip netns` knows
    max_flows     directions of connections that the program can know at once; a connection takes two
    linger        seconds that the header outlives the last end, where the connection does
    rescan        seconds between looks at which interfaces there are, and at routes
    on_stop       what a clean stop does: take all headers away, or leave them on for the next agent
    """

    header: Header = "destination-options"
    mode: Mode = "auto"
    interfaces: list[str] = msgspec.field(default_factory=lambda: ["*"])
    attach: Way = "auto"
    namespaces: list[str] = []
    max_flows: Annotated[int, msgspec.Meta(ge=2)] = DEFAULT_MAX_FLOWS
    linger: Seconds = 0.25
    rescan: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    on_stop: Literal["remove", "leave"] = "remove"


class ExtensionHeader:
    """The backend. What is wanted of each connection is written down, and one task sees to its socket."""

    def __init__(self, settings: ExtensionHeaderSettings) -> None:
        """Raises ConfigError for interfaces that are none."""
        self._settings = settings
        for pattern in settings.interfaces:
            check_pattern(pattern)
        self._sockets = SocketHeaders(settings.header, settings.namespaces)
        self._eased = EasedSockets(self._sockets)
        self._giving_back: asyncio.Task[None] | None = None
        # A thread of our own, as it is in the network namespace in which it was made, whoever leaves that meanwhile.
        self._worker = ThreadPoolExecutor(1, "scitags-sockets")
        self._tc: TcHeaders | None = None
        self._why_no_sockets = "" if settings.mode in ("auto", "socket") else "not asked for"
        self._why_no_tc = ""
        self._why_no_socket: dict[FlowKey, str] = {}
        self._wanted: dict[FlowKey, Tag | None] = {}
        self._borne: dict[FlowKey, Tag] = {}  # on sockets
        self._unmarked: dict[FlowKey, str] = {}
        self._retries: dict[FlowKey, float] = {}
        self._due: dict[FlowKey, float] = {}
        self._queue: list[tuple[float, int, FlowKey]] = []
        self._number = 0
        self._wake = asyncio.Event()
        self._nothing_due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._counters: Counter[str] = Counter()
        self._home: Inheritance = Inheritance()

    async def start(self, inheritance: Inheritance) -> None:
        """Raises SockDiagError or MarkerUnavailable where no way that is asked for can be had."""
        self._home = inheritance
        if inheritance.directory is not None:
            (inheritance.directory / KEEP).unlink(missing_ok=True)
        if not self._why_no_sockets:
            await self._try_sockets()
        if self._settings.mode != "socket":
            await self._load_for_tc()
        if not self._why_no_sockets:
            passed_sockets.wait_for_sockets(self)
        # All that is under way is known to our program before it takes an earlier one's place.
        await self.handle(inheritance.under_way)
        if self._tc is not None:
            try:
                await self._tc.start()
            except MarkerUnavailable as error:
                await self._do_without_tc(self._tc, error)
        self._task = asyncio.create_task(self._work())

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        now = asyncio.get_running_loop().time()
        begun = []
        for change in changes:
            key, tag = change.event.key, change.mark
            reason = why_unmarked(change)
            if reason:
                self._note_unmarked(key, reason)
                tag = None
            if tag is not None:
                if self._wanted.get(key) != tag:
                    self._wanted[key] = tag
                    self._put_at_tc(key, tag)
                    begun.append(key)
                    if not self._why_no_sockets:
                        self._retries[key] = FIRST_RETRY_SECONDS
                        self._plan(key, now)
            elif key in self._wanted:
                self._wanted[key] = None
                self._plan(key, now + self._settings.linger)
            if not change.users:
                self._unmarked.pop(key, None)
        if self._tc is not None:
            # Datagrams cost no route.
            await self._tc.reserve([key for key in begun if self._why_no_sockets or key.protocol == "udp"])
        if begun and not self._why_no_sockets:
            await self._first_look(begun)

    async def close(self) -> None:
        passed_sockets.wait_no_more(self)
        tasks = [task for task in (self._task, self._giving_back) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._in_thread(self._eased.give_back, {})
        directory = self._home.directory
        keep = self._settings.on_stop == "leave" and directory is not None
        if keep and directory is not None:
            (directory / KEEP).touch()
        elif self._borne:
            await self._in_thread(self._sockets.do, [Job(key, None) for key in self._borne])
        self._borne.clear()
        self._worker.shutdown()
        if self._tc is not None:
            await self._tc.close(keep=keep)
            self._tc = None

    def counters(self) -> Mapping[str, int]:
        return {
            "connections": len(self._borne),
            "waiting_for_sockets": sum(1 for key in self._retries if key not in self._borne),
            **(self._tc.counters() if self._tc is not None else {}),
            **self._counters,
        }

    def mark_of(self, key: FlowKey) -> FlowMark | None:
        """How a flow's packets get their header, and why not in a better way."""
        reason = self._unmarked.get(key)
        if reason is not None:
            return FlowMark("unmarked", shown_reason(reason))
        if self._wanted.get(key) is None:
            return None
        if key in self._borne:
            return FlowMark("header: socket")
        why = self._why_no_sockets or self._why_no_socket.get(key, "its socket is being looked for")
        room = self._tc.room_of(key) if self._tc is not None else None
        if room is None:
            return FlowMark("unmarked", f"socket: {why}; tc: {self._why_no_tc or 'not asked for'}")
        if room.reserved:
            return FlowMark("header: tc, room by route", f"socket: {why}")
        return FlowMark("header: tc, what fits", f"socket: {why}; route: {room.why}")

    # --- at tc -------------------------------------------------------------------------------------

    async def _load_for_tc(self) -> None:
        settings = self._settings
        wanted = TcSettings(
            header=settings.header,
            reserve=settings.mode != "tc-unreserved",
            interfaces=settings.interfaces,
            namespaces=settings.namespaces,
            attach=settings.attach,
            max_flows=settings.max_flows,
            rescan=settings.rescan,
        )
        try:
            self._tc = TcHeaders(wanted, self._home.directory)
            await self._tc.open_routes()
        except (MarkerUnavailable, OSError) as error:
            await self._do_without_tc(self._tc, error)

    async def _do_without_tc(self, loaded: TcHeaders | None, error: Exception) -> None:
        """Go on with sockets alone, where they are asked for and can be had; else raise MarkerUnavailable."""
        self._tc = None
        if loaded is not None:
            await loaded.close(keep=False)
        if self._why_no_sockets:
            raise MarkerUnavailable(str(error)) from None
        self._why_no_tc = str(error)
        log.warning("headers are set on sockets alone: %s", error)

    def _put_at_tc(self, key: FlowKey, tag: Tag) -> None:
        if self._tc is None or key in self._borne:
            return
        try:
            self._tc.put(key, tag)
        except OSError as error:
            if not self._counters["unmarked_table_full"]:
                log.error("%s is not known at tc: %s (said once, counted from here)", key, error)
            self._counters["unmarked_table_full"] += 1

    # --- on sockets --------------------------------------------------------------------------------

    async def _try_sockets(self) -> None:
        """Raises SockDiagError where nothing else is asked for."""
        try:
            await self._in_thread(_try_lookup)
        except SockDiagError as error:
            if self._settings.mode == "socket":
                raise
            self._why_no_sockets = str(error)

    def _in_thread(self, function: Callable[..., None], *arguments: Any) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    def _plan(self, key: FlowKey, when: float) -> None:
        self._due[key] = when
        self._number += 1
        heapq.heappush(self._queue, (when, self._number, key))
        self._wake.set()

    async def _first_look(self, begun: Sequence[FlowKey]) -> None:
        """Wait for it: connections that are open bear their headers then. Not for crowds, which take long."""
        if self._task is None or len(begun) > AT_ONCE:
            return
        self._nothing_due.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nothing_due.wait(), FIRST_LOOK_SECONDS)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            jobs = [
                Job(key, self._wanted[key], passed_sockets.take(key)) for key in self._take_due(loop.time(), AT_ONCE)
            ]
            if jobs:
                await self._in_thread(self._sockets.do, jobs)
                without = [job.key for job in jobs if self._is_to_have_room(job, loop.time())]
                if without and self._tc is not None:
                    await self._make_room(self._tc, without)
                continue
            self._nothing_due.set()
            wait = self._queue[0][0] - loop.time() if self._queue else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), None if wait is None else max(wait, 0))

    async def _make_room(self, tc: TcHeaders, keys: Sequence[FlowKey]) -> None:
        """At tc, for connections of which some are open."""
        if not tc.why_no_routes:
            await self._in_thread(self._eased.ease, keys)
        await tc.reserve(keys)
        if self._eased.keys and (self._giving_back is None or self._giving_back.done()):
            self._giving_back = asyncio.create_task(self._give_back(tc))

    async def _give_back(self, tc: TcHeaders) -> None:
        wait = PATIENCE_SECONDS / 2
        while self._eased.keys:
            await asyncio.sleep(wait)
            wait = min(2 * wait, LAST_RETRY_SECONDS)
            rooms = {key: tc.room_of(key) for key in self._eased.keys}
            reserved = {key: room.reserved for key, room in rooms.items() if room is not None}
            await self._in_thread(self._eased.give_back, reserved)

    def _take_due(self, now: float, limit: int) -> Iterator[FlowKey]:
        while self._queue and self._queue[0][0] <= now and limit:
            when, _, key = heapq.heappop(self._queue)
            if self._due.get(key) != when:
                continue  # it was planned again since
            del self._due[key]
            if self._wanted.get(key) == self._borne.get(key):
                self._settle(key)
                continue
            if self._why_no_sockets:
                continue  # it has begun again since
            limit -= 1
            yield key

    def _is_to_have_room(self, job: Job, now: float) -> bool:
        """Take in what became of a job; whether its flow stays at tc."""
        key, tag = job.key, job.tag
        stays = False
        if job.outcome is Outcome.DONE:
            self._note_done(key, tag)
        elif tag is None:
            # Nearly always: the connection has closed, and the header with it.
            self._borne.pop(key, None)
        elif job.outcome is Outcome.NO_SOCKET and self._wanted.get(key) == tag:
            self._why_no_socket[key] = job.reason
            after = self._retries[key] = min(2 * self._retries.get(key, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)
            self._plan(key, now + after)
            return after >= PATIENCE_SECONDS
        else:
            stays = self._tc is not None and job.outcome is not Outcome.OWN_OPTIONS
            self._why_no_socket[key] = job.reason
            self._note_not_done(job, stays=stays)
        if self._wanted.get(key) == tag:
            self._settle(key)
        return stays

    def _note_done(self, key: FlowKey, tag: Tag | None) -> None:
        self._counters["headers_set" if tag else "headers_removed"] += 1
        if tag is None:
            self._borne.pop(key, None)
            return
        self._borne[key] = tag
        self._why_no_socket.pop(key, None)
        if self._tc is not None:
            self._tc.remove(key)

    def _note_not_done(self, job: Job, *, stays: bool) -> None:
        name = f"{'tc' if stays else 'unmarked'}_{job.outcome.value}"
        if not self._counters[name] and not stays:
            log.error("%s bears no header: %s (said once, counted from here)", job.key, job.reason)
        elif not self._counters[name]:
            log.info("%s gets its header at tc: %s (said once, counted from here)", job.key, job.reason)
        if stays:
            self._counters[name] += 1
            return
        self._note_unmarked(job.key, job.outcome.value)
        if self._tc is not None:
            self._tc.remove(job.key)

    def _settle(self, key: FlowKey) -> None:
        self._retries.pop(key, None)
        if self._wanted.get(key) is None:
            self._wanted.pop(key, None)
            self._why_no_socket.pop(key, None)
            if self._tc is not None:
                self._tc.remove(key)

    def _note_unmarked(self, key: FlowKey, reason: str) -> None:
        """Count a flow once, however many events speak of it."""
        if self._unmarked.get(key) != reason:
            self._unmarked[key] = reason
            self._counters[f"unmarked_{reason}"] += 1


def _try_lookup() -> None:
    """Raises SockDiagError where the kernel has no sock_diag."""
    Lookup().close()


KIND = BackendKind("extension_header", ExtensionHeaderSettings, ExtensionHeader)
