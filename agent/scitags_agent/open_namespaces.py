"""Network namespaces besides the agent's own, open: sockets in each, by which its connections and addresses are known.

Sockets are made in a thread that enters the namespace and ends (CAP_SYS_ADMIN); from then on they can be used anywhere.
As long as one is open the kernel keeps the namespace, so that what has gone is looked for every second and closed: the
namespace of a container that ends is kept for that long at most.

All that asks for the same namespaces in one process shares what is open here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from scitags_agent.bpf.connections import namespace_of, own_namespace
from scitags_agent.bpf.namespaces import enter, in_passing_thread
from scitags_agent.connections import Lookup
from scitags_agent.inet_diag import open_netlink
from scitags_agent.namespaces import Finder, Found, own_number
from scitags_agent.rtnetlink import RouteSocket

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
# Looks take no more than this share of the time: to find the namespaces of thousands of processes takes some.
LOOK_SHARE = 0.005
# The same of those that something new asks for at once.
HURRIED_SHARE = 0.05
SPARE_SOCKETS = 2


class OpenNamespace:
    """One of them. A scitags_agent.connections.Place."""

    def __init__(self, found: Found) -> None:
        """To be called inside it. Raises OSError."""
        self.number, self.name = found.number, found.name
        self._spare: list[socket.socket] = []
        with contextlib.ExitStack() as undo:
            # Not the file that it was found by, whose file system could not be unmounted then; and which may go before
            # the namespace does.
            self._door = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, self._door)
            netlink = open_netlink()
            self.cookie = namespace_of(netlink)
            self.lookup = Lookup(self, netlink)
            undo.callback(self.lookup.close)
            self._routes = RouteSocket()
            undo.pop_all()

    @contextlib.contextmanager
    def borrow(self) -> Iterator[socket.socket]:
        """A sock_diag socket for one dump. Raises OSError."""
        netlink = self._spare.pop() if self._spare else self.netlink()
        try:
            yield netlink
        except BaseException:  # answers may be left in it, also of a dump that was not read to its end
            netlink.close()
            raise
        if len(self._spare) < SPARE_SOCKETS and self.lookup.is_open:
            self._spare.append(netlink)
        else:
            netlink.close()

    def netlink(self) -> socket.socket:
        """A sock_diag socket for whoever wants one of its own. Raises OSError."""
        return in_passing_thread(self._enter_and_open).result()

    def interfaces(self, zone: str) -> list[int]:
        """The indexes of all: what a name is there is not asked."""
        return [int(zone)] if zone.isdigit() else [one.index for one in self._routes.links()]

    def is_local(self, address: str) -> bool:
        """Whether an address is one of this namespace."""
        try:
            return self._routes.is_local(address)
        except OSError:
            return False

    def close(self) -> None:
        """Let the kernel take it away."""
        self.lookup.close()
        self._routes.close()
        os.close(self._door)
        self._door = -1  # its number may be another's at once, of another namespace even
        while self._spare:
            self._spare.pop().close()

    def _enter_and_open(self) -> socket.socket:
        enter(f"/proc/self/fd/{self._door}")
        return open_netlink()


Watcher = Callable[[OpenNamespace], None]
_Looked = tuple[dict[int, Found], dict[int, OpenNamespace], float]


class Namespaces:
    """Those that some patterns mean, as they come and go. To be used in one event loop alone."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises ConfigError."""
        self.patterns = tuple(patterns)
        self.own, self.own_cookie = own_number(), own_namespace()
        self._finder = Finder(patterns, self.own)
        self._open: dict[int, OpenNamespace] = {}
        self._by_cookie: dict[int, OpenNamespace] = {}
        self._refused: dict[int, str] = {}
        self._watchers: dict[Watcher, Watcher] = {}
        self._users = 0
        self._looking: asyncio.Task[None] | None = None
        self._strangers: set[int] = set()
        self._next_hurried = 0.0
        self._under_way: Future[_Looked] | None = None  # a look, of which nothing is applied yet

    @property
    def refused(self) -> int:
        """How many are there that could not be looked into."""
        return len(self._refused)

    @property
    def present(self) -> Mapping[int, OpenNamespace]:
        """By their numbers."""
        return self._open

    def may_be_there(self, number: int) -> bool:
        """Whether there is one with this number, or that cannot be said."""
        return number in self._open or number in self._refused or self._finder.is_denied

    def begin(self) -> None:
        """One more uses this. Those that are there are open from then on, the others as they come. Raises OSError."""
        if not self._users:
            self._apply(*in_passing_thread(self._look).result())
            self._looking = asyncio.get_running_loop().create_task(self._keep_looking())
            for pattern in self._finder.missing():
                log.warning("namespace %s: there is none now, and it is waited for", pattern)
        self._users += 1

    def end(self) -> None:
        """One less."""
        self._users -= 1
        if not self._users and self._looking is not None:
            self._looking.cancel()
            self._looking = None
            for number in list(self._open):
                self._close(number)
            _shared.pop(self.patterns, None)

    def watch(self, came: Watcher, gone: Watcher) -> None:
        """came is called of each that is there, and of each that comes; gone before one is closed."""
        self._watchers[came] = gone
        for one in list(self._open.values()):
            came(one)

    def unwatch(self, came: Watcher) -> None:
        """The opposite."""
        self._watchers.pop(came, None)

    def by_cookie(self, cookie: int) -> OpenNamespace | None:
        """That with the kernel's cookie; one that is not known yet is looked for at once, as often as may be."""
        return self._known_or_new(self._by_cookie, cookie)

    def by_number(self, number: int) -> OpenNamespace | None:
        """That with a number; likewise."""
        return self._known_or_new(self._open, number)

    def _known_or_new(self, known: Mapping[int, OpenNamespace], name: int) -> OpenNamespace | None:
        found = known.get(name)
        if found is None and name not in self._strangers and self.hurry():
            found = known.get(name)
            if found is None:
                self._strangers.add(name)
        return found

    def hurry(self) -> bool:
        """Look now, when that was not done too often; whether it was done."""
        began = time.monotonic()
        if began < self._next_hurried or not self._users:
            return False
        try:
            if self._under_way is not None:  # and may have begun too early
                self._take(self._under_way)
            self._apply(*in_passing_thread(self._look).result())
        except OSError:
            return False
        finally:
            self._next_hurried = began + (time.monotonic() - began) / HURRIED_SHARE
        return True

    async def _keep_looking(self) -> None:
        pause = LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            began = time.thread_time()
            try:
                took = await self._look_in_thread()
            except OSError as error:
                log.debug("namespaces cannot be looked for: %s", error)
                continue
            pause = max(LOOK_SECONDS, (time.thread_time() - began + took) / LOOK_SHARE)

    async def _look_in_thread(self) -> float:
        """The seconds of processor time that the thread took."""
        future = self._under_way = in_passing_thread(self._timed_look)
        try:
            await asyncio.wrap_future(future)
            return self._take(future)
        except asyncio.CancelledError:
            if self._under_way is future:
                future.add_done_callback(_close_opened)
            raise
        finally:
            self._under_way = None

    def _take(self, look: Future[_Looked]) -> float:
        """Wait for a look and apply what it has found, once; the seconds that it took. Raises OSError."""
        found, opened, took = look.result()
        if self._under_way is look:
            self._under_way = None
            self._apply(found, opened)
        return took

    def _timed_look(self) -> _Looked:
        return *self._look(), time.thread_time()

    def _look(self) -> tuple[dict[int, Found], dict[int, OpenNamespace]]:
        """In a passing thread: what is there, and of that what is new, opened."""
        found = self._finder.find()
        opened: dict[int, OpenNamespace] = {}
        for number, one in found.items():
            if number in self._open:
                continue
            try:
                enter(one.path)
                opened[number] = OpenNamespace(one)
                self._refused.pop(number, None)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has gone again
            except OSError as error:
                if number not in self._refused:
                    log.error("namespace %s cannot be looked into, and is tried again: %s", one.name, error)
                self._refused[number] = str(error)
        return found, opened

    def _apply(self, found: Mapping[int, Found], opened: Mapping[int, OpenNamespace]) -> None:
        self._strangers.clear()
        for number in self._refused.keys() - found.keys():
            del self._refused[number]
        for number in [one for one in self._open if one not in found]:
            self._close(number)
        for number, one in opened.items():
            log.info("namespace %s: its connections are looked at", one.name)
            self._open[number] = one
            if one.cookie:
                self._by_cookie[one.cookie] = one
            for came in list(self._watchers):
                came(one)

    def _close(self, number: int) -> None:
        one = self._open[number]
        for gone in list(self._watchers.values()):
            gone(one)
        del self._open[number]
        self._by_cookie.pop(one.cookie, None)
        one.close()
        log.info("namespace %s has gone, or is left", one.name)


def _close_opened(future: Future[_Looked]) -> None:
    """What nobody waits for any more."""
    if not future.cancelled() and future.exception() is None:
        for one in future.result()[1].values():
            one.close()


_shared: dict[tuple[str, ...], Namespaces] = {}


def shared(patterns: Sequence[str]) -> Namespaces:
    """The one object for these patterns in this process. Raises ConfigError."""
    key = tuple(patterns)
    if key not in _shared:
        _shared[key] = Namespaces(key)
    return _shared[key]
