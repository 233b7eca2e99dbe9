"""The flows whose packets the program at tc gives an extension header, and where it looks for each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from scitags_agent.bpf.header_program import HeaderProgram
from scitags_agent.reserved_routes import Place, Room
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag

if TYPE_CHECKING:
    from scitags_agent.namespaces import Found

log = logging.getLogger(__name__)

_OF_DATAGRAMS = "its application says how long its datagrams are"
NO_ROOM = Room(why="no room is kept free for it yet")


class HeaderFlow(msgspec.Struct):
    """A connection; a tag for each name under which it was reported, the newest last.

    place      where room is kept for it, None for none
    is_asked   for room
    """

    key: FlowKey
    tags: dict[FlowKey, Tag]
    place: Place | None = None
    room: Room = NO_ROOM
    is_asked: bool = False

    @property
    def tag(self) -> Tag:
        """The newest."""
        return next(reversed(self.tags.values()))


class HeaderFlows:
    """Those of one program, in the agent's network namespace and others."""

    def __init__(self, program: HeaderProgram) -> None:
        self._program = program
        self._flows: dict[FlowKey, HeaderFlow] = {}
        self._places: dict[int, int] = {}  # of other network namespaces that are looked into, by their numbers
        self.refused = 0  # in a namespace that came, for want of room in the map

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[HeaderFlow]:
        """To be listed where flows may come or go meanwhile."""
        return iter(self._flows.values())

    def of(self, key: FlowKey) -> HeaderFlow | None:
        """A connection, by either of its names."""
        return self._flows.get(_canonical(key))

    def put(self, key: FlowKey, tag: Tag) -> None:
        """Mark a connection's packets from now on. Raises OSError (E2BIG) when there is no room for it in the map."""
        name = _canonical(key)
        flow = self._flows.get(name)
        if flow is None:
            flow = HeaderFlow(name, {key: tag})
            self._write(flow)
            self._flows[name] = flow
        elif flow.tags.get(key) != tag:
            flow.tags.pop(key, None)
            flow.tags[key] = tag
            self._write(flow)

    def remove(self, key: FlowKey) -> HeaderFlow | None:
        """Under this name, mark the connection no more; the flow, when it was marked and that was its last name."""
        flow = self.of(key)
        if flow is None or key not in flow.tags:
            return None
        del flow.tags[key]
        if flow.tags:
            self._write(flow)
            return None
        del self._flows[flow.key]
        self._forget(flow, self._places_of(flow.key))
        return flow

    def set_room(self, flow: HeaderFlow, room: Room) -> None:
        """What its packets have room for from now on."""
        flow.room = room if keeps_room(flow.key) else Room(room.path_mtu, 0, room.why or _OF_DATAGRAMS)
        self._write(flow)

    def peer_mtus(self, flow: HeaderFlow) -> list[int]:
        """What the other end takes at most, of either direction wherever it may be; 0 where that is not known."""
        ends = (flow.key, flow.key.reversed())
        return [self._program.peer_mtu(one, place=place) for place in self._places_of(flow.key) for one in ends]

    async def came(self, namespace: Found, place: int) -> None:
        """A namespace is looked into from now on: its flows were looked for where they leave ours until now."""
        number = namespace.number
        for flow in self:
            if flow.key.namespace == number:
                self._forget(flow, [0])
        self._places[number] = place
        for flow in list(self):
            if flow.key.namespace in (0, number):
                try:
                    self._write(flow)
                except OSError as error:
                    if not self.refused:
                        log.error("%s is not known at tc: %s (said once, counted from here)", flow.key, error)
                    self.refused += 1

    async def gone(self, number: int) -> None:
        """The opposite."""
        place = self._places.pop(number)
        for flow in self:
            if flow.key.namespace in (0, number):
                self._forget(flow, [place])

    def _places_of(self, key: FlowKey) -> list[int]:
        """Where a flow's packets are looked for: everywhere, where it is not known in which namespace it is."""
        if key.namespace:
            return [self._places.get(key.namespace, 0)]
        return [0, *self._places.values()]

    def _forget(self, flow: HeaderFlow, places: Iterable[int]) -> None:
        name = flow.key.within(0)
        for place in places:
            for direction in (name, name.reversed()):
                self._program.remove(direction, place=place)

    def _write(self, flow: HeaderFlow) -> None:
        name, room = flow.key.within(0), flow.room
        try:
            for place in self._places_of(flow.key):
                for direction in (name, name.reversed()):
                    self._program.put(direction, flow.tag, place=place, path_mtu=room.path_mtu, reserved=room.reserved)
        except OSError:
            self._forget(flow, self._places_of(flow.key))
            raise


def keeps_room(key: FlowKey) -> bool:
    """Whether the kernel says how long a flow's packets are."""
    return key.protocol == "tcp"


def _canonical(key: FlowKey) -> FlowKey:
    """The same key for both directions of a connection."""
    return min(key, key.reversed())
