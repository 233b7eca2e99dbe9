"""The tag in an IPv6 Destination Options or Hop-by-Hop header of each packet, put there by the kernel.

The option is set on the live socket of the transfer (IPV6_DSTOPTS, IPV6_HOPOPTS of RFC 3542). The kernel then writes it
into every packet and leaves room for it in each segment: no program runs for any packet, none grows beyond the path
MTU, and none is cut in two.

The socket is that which the storage has passed along, else it is found by the flow's 5-tuple and taken from the
process that holds it. What an application has set itself stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import heapq
import logging
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from scitags_agent import passed_sockets
from scitags_agent.bpf.namespaces import entered
from scitags_agent.connections import OPEN_STATES, SYN_RECV, SYN_SENT, Lookup, SockDiagError
from scitags_agent.live_socket import LiveSockets
from scitags_agent.passed_sockets import identified
from scitags_agent.unmarked import why_unmarked
from scitags_core import exthdr
from scitags_core.errors import FlowEventError, TagError
from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.roles import KEEP, BackendKind, Inheritance
from scitags_core.tag import UNKNOWN, Tag

log = logging.getLogger(__name__)

# linux/in6.h
IPV6_HOPOPTS = 54
IPV6_DSTOPTS = 59
_OPTIONS = {
    "destination-options": (IPV6_DSTOPTS,),
    "hop-by-hop": (IPV6_HOPOPTS,),
    "both": (IPV6_HOPOPTS, IPV6_DSTOPTS),
}
_MOST_OCTETS = 1024  # of the options of a socket that are looked at; ours are 8
FIRST_RETRY_SECONDS = 0.02  # a start may come before its connection
LAST_RETRY_SECONDS = 5.0
AT_ONCE = 256

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class ExtensionHeaderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which header.

    header        destination-options, hop-by-hop, or both. Routers look at Hop-by-Hop, and many drop it
    namespaces    network namespaces besides the agent's own, by path or by the name that `ip netns` knows
    linger        seconds that the header outlives the last end, where the connection does
    on_stop       what a clean stop does: take all headers away, or leave them on for the next agent
    """

    header: Literal["destination-options", "hop-by-hop", "both"] = "destination-options"
    namespaces: list[str] = []
    linger: Seconds = 0.25
    on_stop: Literal["remove", "leave"] = "remove"


class Outcome(enum.Enum):
    """What became of an attempt; the value is the counter's name."""

    DONE = "done"
    NO_SOCKET = "no_socket"
    OWN_OPTIONS = "own_options"
    NO_RIGHT = "no_right"
    REFUSED = "kernel_refused"


class _Job(msgspec.Struct):
    key: FlowKey
    tag: Tag | None  # None to take the header away
    descriptor: int | None
    outcome: Outcome = Outcome.NO_SOCKET
    reason: str = ""


class ExtensionHeader:
    """The backend. What is wanted of each connection is written down, and one task sees to it."""

    def __init__(self, settings: ExtensionHeaderSettings) -> None:
        self._settings = settings
        self._options = _OPTIONS[settings.header]
        self._wanted: dict[FlowKey, Tag | None] = {}
        self._borne: dict[FlowKey, Tag] = {}
        self._unmarked: dict[FlowKey, str] = {}
        self._retries: dict[FlowKey, float] = {}
        self._due: dict[FlowKey, float] = {}
        self._queue: list[tuple[float, int, FlowKey]] = []
        self._number = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._sockets = LiveSockets()
        self._counters: Counter[str] = Counter()
        self._home: Inheritance = Inheritance()

    async def start(self, inheritance: Inheritance) -> None:
        """Raises SockDiagError where the kernel has no sock_diag."""
        with Lookup():
            pass
        self._home = inheritance
        if inheritance.directory is not None:
            (inheritance.directory / KEEP).unlink(missing_ok=True)
        passed_sockets.wait_for_sockets(self)
        await self.handle(inheritance.under_way)
        self._task = asyncio.create_task(self._work())

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        now = asyncio.get_running_loop().time()
        for change in changes:
            key, tag = change.event.key, change.mark
            reason = why_unmarked(change)
            if reason:
                self._note_unmarked(key, reason)
                tag = None
            if tag is not None:
                if self._wanted.get(key) != tag:
                    self._wanted[key] = tag
                    self._retries[key] = FIRST_RETRY_SECONDS
                    self._plan(key, now)
            elif key in self._wanted:
                self._wanted[key] = None
                self._plan(key, now + self._settings.linger)
            if not change.users:
                self._unmarked.pop(key, None)

    async def close(self) -> None:
        passed_sockets.wait_no_more(self)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        directory = self._home.directory
        if self._settings.on_stop == "leave" and directory is not None:
            (directory / KEEP).touch()
        elif self._borne:
            await asyncio.to_thread(self._do, [_Job(key, None, None) for key in self._borne])
        self._borne.clear()

    def counters(self) -> Mapping[str, int]:
        return {
            "connections": len(self._borne),
            "waiting_for_sockets": sum(1 for key in self._retries if key not in self._borne),
            **self._counters,
        }

    def _plan(self, key: FlowKey, when: float) -> None:
        self._due[key] = when
        self._number += 1
        heapq.heappush(self._queue, (when, self._number, key))
        self._wake.set()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            jobs = [
                _Job(key, self._wanted[key], passed_sockets.take(key)) for key in self._take_due(loop.time(), AT_ONCE)
            ]
            if jobs:
                await asyncio.to_thread(self._do, jobs)
                for job in jobs:
                    self._conclude(job, loop.time())
                continue
            wait = self._queue[0][0] - loop.time() if self._queue else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), None if wait is None else max(wait, 0))

    def _take_due(self, now: float, limit: int) -> Iterator[FlowKey]:
        while self._queue and self._queue[0][0] <= now and limit:
            when, _, key = heapq.heappop(self._queue)
            if self._due.get(key) != when:
                continue  # it was planned again since
            del self._due[key]
            if self._wanted.get(key) == self._borne.get(key):
                self._settle(key)
                continue
            limit -= 1
            yield key

    def _conclude(self, job: _Job, now: float) -> None:
        key, tag = job.key, job.tag
        if job.outcome is Outcome.DONE:
            self._counters["headers_set" if tag else "headers_removed"] += 1
            if tag is None:
                self._borne.pop(key, None)
            else:
                self._borne[key] = tag
        elif tag is None:
            # Nearly always: the connection has closed, and the header with it.
            self._borne.pop(key, None)
        elif job.outcome is Outcome.NO_SOCKET and self._wanted.get(key) == tag:
            after = self._retries[key] = min(2 * self._retries.get(key, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)
            self._plan(key, now + after)
            return
        else:
            if not self._counters[f"unmarked_{job.outcome.value}"]:
                log.error("%s bears no header: %s (said once, counted from here)", key, job.reason)
            self._note_unmarked(key, job.outcome.value)
        if self._wanted.get(key) == tag:
            self._settle(key)

    def _settle(self, key: FlowKey) -> None:
        self._retries.pop(key, None)
        if self._wanted.get(key) is None:
            self._wanted.pop(key, None)

    def _note_unmarked(self, key: FlowKey, reason: str) -> None:
        """Count a flow once, however many events speak of it."""
        if self._unmarked.get(key) != reason:
            self._unmarked[key] = reason
            self._counters[f"unmarked_{reason}"] += 1

    # --- in a thread -------------------------------------------------------------------------------

    def _do(self, jobs: Sequence[_Job]) -> None:
        self._sockets.begin()
        for job in jobs:
            try:
                if job.descriptor is not None:
                    self._act(job, job.descriptor)
                else:
                    self._find_and_act(job)
            except PermissionError as error:
                job.outcome, job.reason = Outcome.NO_RIGHT, f"{error}: CAP_SYS_PTRACE and CAP_NET_RAW are needed"
            except (ProcessLookupError, SockDiagError) as error:
                job.outcome, job.reason = Outcome.NO_SOCKET, str(error)
            except OSError as error:
                job.outcome, job.reason = Outcome.REFUSED, str(error)

    def _find_and_act(self, job: _Job) -> None:
        for inode in self._inodes(job.key):
            self._act(job, self._sockets.take(inode))

    def _inodes(self, key: FlowKey) -> Iterable[int]:
        """Of this host's ends of a connection: one, or both where both are here."""
        for namespace in ("", *self._settings.namespaces):
            try:
                with entered(namespace), Lookup() as lookup:
                    for end in (key, key.reversed()):
                        found = lookup.find(end, details=False)
                        if found is not None and found.inode and found.state in OPEN_STATES | {SYN_SENT, SYN_RECV}:
                            yield found.inode
            except FileNotFoundError:
                continue  # the namespace has gone, and its sockets with it

    def _act(self, job: _Job, descriptor: int) -> None:
        """Set the options of a socket; the descriptor is closed."""
        with socket.socket(fileno=descriptor) as one:
            try:
                identified(FlowEvent(state=FlowState.START, key=job.key, tag=job.tag or UNKNOWN), one.fileno())
            except FlowEventError as error:
                # Between the look and the grasp the number came to name another.
                raise ProcessLookupError(str(error)) from None
            present = {option: one.getsockopt(socket.IPPROTO_IPV6, option, _MOST_OCTETS) for option in self._options}
            if not all(_is_ours(octets) for octets in present.values()):
                job.outcome, job.reason = Outcome.OWN_OPTIONS, "the application has set options of its own"
                return
            for option in self._options:
                if job.tag is not None:
                    one.setsockopt(socket.IPPROTO_IPV6, option, exthdr.encode(job.tag.experiment, job.tag.activity, 0))
                elif present[option]:
                    one.setsockopt(socket.IPPROTO_IPV6, option, None, 0)
            job.outcome = Outcome.DONE


def _is_ours(octets: bytes) -> bool:
    """Whether a socket has no options, or one that an agent has set."""
    if not octets:
        return True
    try:
        exthdr.decode(octets)
    except TagError:
        return False
    return len(octets) == exthdr.HEADER_OCTETS


KIND = BackendKind("extension_header", ExtensionHeaderSettings, ExtensionHeader)
