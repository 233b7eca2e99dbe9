"""Extension headers put in at tc egress, with or without room for them kept free by routes.

A flow is known to the program from the moment that put() returns, its SYN included. reserve() besides has the kernel
make its segments shorter by the headers; until then, and where that cannot be, what has room bears one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from scitags_agent.bpf.attach import Way
from scitags_agent.bpf.header_program import Header, HeaderProgram, room_of
from scitags_agent.bpf.placement import Placement
from scitags_agent.header_flows import NO_ROOM, HeaderFlows, keeps_room
from scitags_agent.looks import Looks
from scitags_agent.reserved_routes import OWN, ROUTES, Place, ReservedRoutes, Room
from scitags_agent.too_big import TooBigMessages
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag

if TYPE_CHECKING:
    from scitags_agent.programs_elsewhere import ProgramsElsewhere

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)

FILTER_NAME = "scitags_header"
CHANGE_SECONDS = 0.02  # changes of routes and links come in bursts
PEERS_SECONDS = 0.05


class TcSettings(msgspec.Struct, frozen=True):
    """As of the backend."""

    header: Header
    reserve: bool
    interfaces: Sequence[str]
    namespaces: Sequence[str]
    attach: Way
    max_flows: int
    rescan: float


class TcHeaders:
    """The program, its flows, and their room."""

    def __init__(self, settings: TcSettings, home: Path | None) -> None:
        """Load the program. Raises MarkerUnavailable, and OSError where nothing can be written in home."""
        self._settings = settings
        self._home = home
        self._program = HeaderProgram(settings.header, settings.max_flows)
        self._flows = HeaderFlows(self._program)
        self._elsewhere: ProgramsElsewhere | None = None
        self._by_place: dict[Place, set[FlowKey]] = {}
        self._routes: ReservedRoutes | None = None
        self.why_no_routes = "" if settings.reserve else "not asked for"
        # A thread of our own, as it is in the network namespace in which it was made, whoever leaves that meanwhile.
        self._worker = ThreadPoolExecutor(1, "scitags-routes")
        self._too_big: dict[int, TooBigMessages] = {}  # by the number of the namespace
        self._looks: Looks | None = None
        self._chores: list[asyncio.Task[None]] = []
        self._due = asyncio.Event()
        self._has_more = False  # the program is on interfaces on which it was not
        self._has_room = asyncio.Event()  # some flow
        self._failures: Counter[str] = Counter()
        if settings.namespaces:
            from scitags_agent.programs_elsewhere import ProgramsElsewhere  # noqa: PLC0415  # few agents need it

            self._elsewhere = ProgramsElsewhere(self._program.elsewhere, self._flows.came, self._flows.gone)
        try:
            self._placement = Placement(
                self._program,
                settings.interfaces,
                name=FILTER_NAME,
                namespaces=settings.namespaces,
                elsewhere=self._elsewhere,
                way=settings.attach,
                home=home,
            )
        except OSError:
            self._program.close()
            raise

    async def open_routes(self) -> None:
        """Make ready to keep room free; where that cannot be, why_no_routes says why."""
        if not self._settings.reserve:
            return
        settings = self._settings
        try:
            if self._home is not None:
                (self._home / ROUTES).write_bytes(msgspec.json.encode(list(settings.namespaces)))
            self._routes = await self._in_thread(
                ReservedRoutes, room_of(settings.header), settings.namespaces, self._placement.covers
            )
            self._too_big[OWN] = await self._in_thread(_open_too_big, self._routes, OWN)
            await self._listen_elsewhere(self._routes)
        except OSError as error:
            routes, self._routes = self._routes, None
            if routes is not None:
                await self._in_thread(routes.close, False)
            self.why_no_routes = f"routes and ICMPv6 are out of reach: {error.strerror}"
            log.warning("no room is kept free for headers: %s", self.why_no_routes)

    async def start(self) -> None:
        """Attach, with the flows that are known by now. MarkerUnavailable where it cannot be attached to any."""
        loop = asyncio.get_running_loop()
        self._looks = Looks(self._settings.rescan, self._settings.namespaces)
        await self._placement.start()
        if self._routes is not None:
            for listener in self._routes.listeners:
                loop.add_reader(listener, self._hear)
            own = self._too_big[OWN]
            loop.add_reader(own, self._hear_too_big, own, OWN)
            # What an earlier agent left, and no flow that is under way has asked for.
            await self._in_thread(self._routes.forget_left)
        chores = (self._keep_placed(self._looks), self._keep_looking(), self._watch_peers())
        self._chores = [asyncio.create_task(chore) for chore in chores]

    def put(self, key: FlowKey, tag: Tag) -> None:
        """Mark a connection's packets from now on. Raises OSError (E2BIG) when there is no room for it in the map."""
        self._flows.put(key, tag)

    async def reserve(self, keys: Iterable[FlowKey]) -> None:
        """Keep room free for these, of those that were put; for datagrams see how much fits."""
        flows = [flow for flow in map(self._flows.of, keys) if flow is not None and not flow.is_asked]
        for flow in flows:
            flow.is_asked = True
        if flows and self._routes is not None:
            now = asyncio.get_running_loop().time()
            answers = await self._in_thread(_reserve, self._routes, [flow.key for flow in flows], now)
            for flow, (place, room) in zip(flows, answers, strict=True):
                if self._flows.of(flow.key) is not flow:  # it has ended meanwhile
                    self._release(place, flow.key)
                    continue
                flow.place = place
                if place is not None:
                    self._by_place.setdefault(place, set()).add(flow.key)
                    self._has_room.set()
                self._flows.set_room(flow, room)
        elif flows:
            for flow in flows:
                flow.room = Room(why=self.why_no_routes)

    def remove(self, key: FlowKey) -> None:
        """Under this name, mark the connection no more; nothing happens when it was not."""
        flow = self._flows.remove(key)
        if flow is None:
            return
        if flow.place is not None:
            self._by_place[flow.place].discard(flow.key)
            if not self._by_place[flow.place]:
                del self._by_place[flow.place]
            if not self._by_place:
                self._has_room.clear()
        self._release(flow.place, flow.key)

    def room_of(self, key: FlowKey) -> Room | None:
        """What room a connection has; None when it is not marked here."""
        flow = self._flows.of(key)
        return None if flow is None else flow.room

    async def close(self, *, keep: bool) -> None:
        """Take program and routes away, unless they are to be kept for the next agent."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        if self._looks is not None:
            self._looks.close()
        loop = asyncio.get_running_loop()
        for one in self._too_big.values():
            loop.remove_reader(one)
            one.close()
        await self._placement.close(keep=keep)
        if self._routes is not None:
            for listener in self._routes.listeners:
                loop.remove_reader(listener)
            routes, self._routes = self._routes, None
            await self._in_thread(routes.close, keep)
        if not keep and self._home is not None:
            (self._home / ROUTES).unlink(missing_ok=True)
        self._worker.shutdown()
        if self._elsewhere is not None:
            self._elsewhere.close()
        self._program.close()

    def counters(self) -> Mapping[str, int]:
        """Totals, by name."""
        failed = self._placement.failed_looks
        return {
            "connections_at_tc": len(self._flows),
            "connections_with_room": sum(1 for flow in self._flows if flow.room.reserved),
            "routes": len(self._routes) if self._routes is not None else 0,
            "interfaces": len(self._placement),
            **{f"packets_{name}": total for name, total in self._program.outcomes().items()},
            **({"failed_scans": failed} if failed else {}),
            **({"unmarked_table_full": self._flows.refused} if self._flows.refused else {}),
            **self._failures,
        }

    def _release(self, place: Place | None, key: FlowKey) -> None:
        if place is not None and self._routes is not None:
            self._worker.submit(partial(self._routes.release, place, keeps=keeps_room(key)))

    def _hear(self) -> None:
        if self._routes is not None and self._routes.heard():
            self._due.set()

    def _hear_too_big(self, listener: TooBigMessages, namespace: int) -> None:
        now = asyncio.get_running_loop().time()
        for key, mtu in listener.heard():
            # Whoever makes such a message up must know a flow at least.
            is_known = any(self._flows.of(key.within(one)) is not None for one in {0, namespace})
            if self._routes is not None and is_known and self._routes.learn(key.dst, mtu, now):
                self._due.set()

    async def _watch_peers(self) -> None:
        """For connections whose other end takes less than the path lets through, room is to be kept below that."""
        seen = 0
        while True:
            await self._has_room.wait()
            await asyncio.sleep(PEERS_SECONDS)
            narrowed = self._program.narrowed
            if narrowed == seen or self._routes is None:
                continue
            seen = narrowed
            for flow in list(self._flows):
                found = self._flows.peer_mtus(flow) if flow.place else []
                if any(found) and flow.place and self._routes.learn_of_peer(flow.place, min(filter(None, found))):
                    self._due.set()

    async def _keep_placed(self, looks: Looks) -> None:
        while True:
            await looks.next()
            before = self._placement.attached
            await self._placement.look()
            self._has_more |= not self._placement.attached <= before
            self._due.set()

    async def _keep_looking(self) -> None:
        """At routes: when something has changed, and after each look at interfaces."""
        while True:
            await self._due.wait()
            await asyncio.sleep(CHANGE_SECONDS)
            self._due.clear()
            more, self._has_more = self._has_more, False
            try:
                await self._follow_namespaces(anew=more)
                if more:
                    await self._try_again()
                await self._follow_routes()
            except OSError as error:
                self._failures["failed_looks_at_routes"] += 1
                if self._failures["failed_looks_at_routes"] == 1:
                    log.error("the routes cannot be looked at: %s (said once, counted from here)", error)

    async def _try_again(self) -> None:
        """Flows that got no room may get it by the interfaces that have come."""
        if self._routes is not None:
            self._routes.doubt()
        # Those that still wait for their first answer get one of now.
        without = [one for one in self._flows if one.is_asked and one.place is None and one.room is not NO_ROOM]
        for flow in without:
            flow.is_asked = False
        await self.reserve([flow.key for flow in without])

    async def _follow_namespaces(self, *, anew: bool) -> None:
        """Hear of those that have come, and keep none that has gone."""
        routes = self._routes
        if routes is None or not self._settings.namespaces:
            return
        loop = asyncio.get_running_loop()
        for listener in routes.listeners:
            loop.remove_reader(listener)
        await self._in_thread(partial(routes.follow_namespaces, anew=anew))
        for listener in routes.listeners:
            loop.add_reader(listener, self._hear)
        for gone in self._too_big.keys() - set(routes.namespaces):
            loop.remove_reader(self._too_big[gone])
            self._too_big.pop(gone).close()
        await self._listen_elsewhere(routes)

    async def _listen_elsewhere(self, routes: ReservedRoutes) -> None:
        """In namespaces that have come; in one that cannot be entered, or is gone again, it is tried again."""
        for namespace in [one for one in routes.namespaces if one not in self._too_big]:
            with suppress(OSError):
                one = self._too_big[namespace] = await self._in_thread(_open_too_big, routes, namespace)
                asyncio.get_running_loop().add_reader(one, self._hear_too_big, one, namespace)

    async def _follow_routes(self) -> None:
        routes = self._routes
        if routes is None:
            return
        changed = await self._in_thread(routes.look, asyncio.get_running_loop().time())
        for place, room in changed.items():
            for name in self._by_place.get(place, ()):
                flow = self._flows.of(name)
                if flow is not None:
                    self._flows.set_room(flow, room)
            if room.why:
                log.warning("no room is kept free for headers towards %s: %s", place[1], room.why)

    def _in_thread(self, function: Callable[..., Answer], *arguments: Any) -> asyncio.Future[Answer]:
        return asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)


def _reserve(routes: ReservedRoutes, keys: Sequence[FlowKey], now: float) -> list[tuple[Place | None, Room]]:
    """The place of each connection, where there is one, and its room."""
    found: list[tuple[Place | None, Room]] = []
    for key in keys:
        ends = (key, key.reversed())
        places = [(routes.place_of(one.src, one.dst, one.namespace), one.src) for one in ends]
        place, source = next(((place, source) for place, source in places if isinstance(place, tuple)), places[0])
        if isinstance(place, tuple):
            found.append((place, routes.reserve(place, source, now, keeps=keeps_room(key))))
        else:
            found.append((None, Room(why=place)))
    return found


def _open_too_big(routes: ReservedRoutes, namespace: int) -> TooBigMessages:
    """Raises OSError."""
    with routes.inside(namespace):
        return TooBigMessages()
