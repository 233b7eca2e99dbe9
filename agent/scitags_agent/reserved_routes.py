"""Room for headers that are put in at tc: routes of single destinations, with an MTU that is lower by the headers.

A route is copied from that which packets take, so that nothing else about their way changes. It has a protocol number
of our own, by which it is known after a kill; only such are ever taken away. Where a destination has a route of its own
already, that stays as it is, and nothing is reserved.

What the kernel learns of the path MTU is respected: the room is then taken from that. While a route changes, packets
that have no room are left unmarked by the program: it asks the socket what the kernel goes by.

For datagrams no room is kept: they are as long as their application makes them, and a lower MTU would have the kernel
cut them in two, or refuse them. Of their way just the MTU is told.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import msgspec

from scitags_agent.bpf.namespaces import entered, inside
from scitags_agent.local_address import can_bind
from scitags_agent.namespaces import Finder, Found
from scitags_agent.rtnetlink import (
    RTAX_ADVMSS,
    RTAX_MTU,
    RTM_DELLINK,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
    RTN_UNICAST,
    Route,
    RouteSocket,
    is_gone,
    link_index,
    pack_number,
    parse_route,
)

log = logging.getLogger(__name__)

PROTOCOL = 92  # of our routes: no number that anybody is known to use (iproute2's rt_protos)
ROUTES = "routes"  # a file that names the namespaces in which there may be some
IPV6_MIN_MTU = 1280
_TCP_AND_IPV6 = 60
_HOST_PREFIX = 128
_LEARNED_SECONDS = 600.0  # how long the kernel by itself believes in a path MTU (net.ipv6.route.mtu_expires)
_SYSCTL = Path("/proc/sys/net/ipv6/conf")

OWN = 0
Place = tuple[int, str]  # the number of the namespace, 0 for the agent's own, and the address


class Room(msgspec.Struct, frozen=True):
    """What is known of the way to a destination.

    path_mtu   what it lets through, as far as this host knows; 0 when it does not
    reserved   what the kernel fills, when the room is kept free; 0 when not
    why        why not; empty where nobody has asked for it
    """

    path_mtu: int = 0
    reserved: int = 0
    why: str = ""


class _Reservation(msgspec.Struct):
    """keepers are those of the users that room is kept for; learned is a path MTU that was told of on the way, believed
    until then; peer what the other end takes at most.
    """

    source: str
    users: int = 0
    keepers: int = 0
    room: Room = Room()
    route: Route | None = None
    interfaces: Sequence[int] = ()
    learned: int = 0
    learned_until: float = 0.0
    peer: int = 0


class ReservedRoutes:
    """The routes of this agent. All but heard() may wait for the kernel: to be called by one thread at a time."""

    def __init__(
        self, room: int, namespaces: Sequence[str] = (), covers: Callable[[int, int], bool] = lambda *_: True
    ) -> None:
        """room is in octets; covers(namespace, index) tells by which interfaces packets are marked. Raises OSError.

        namespaces are patterns (scitags_agent.namespaces).
        """
        self._room = room
        self._covers = covers
        self._reservations: dict[Place, _Reservation] = {}
        self._stale: set[Place] = set()
        # By the number of the namespace: the file by which it is found changes while it lives on.
        self._asked: dict[int, RouteSocket] = {}
        self._heard: dict[int, RouteSocket] = {}
        self._left: dict[Place, Route] = {}
        self._finder = Finder(namespaces) if namespaces else None
        self._others: Mapping[int, Found] = {}
        self._open(OWN)
        self.follow_namespaces()

    def _open(self, namespace: int) -> None:
        """Raises OSError, but for a namespace other than ours that cannot be looked into, which is tried again."""
        try:
            with self.inside(namespace):
                asked = self._asked[namespace] = RouteSocket()
                self._heard[namespace] = RouteSocket(RTMGRP_LINK | RTMGRP_IPV6_ROUTE)
                for route in asked.routes_of(PROTOCOL):
                    self._left[namespace, route.destination] = route
        except OSError:
            if not namespace:
                raise

    @property
    def namespaces(self) -> list[int]:
        """The numbers of those that are there, that of the agent's own first."""
        return [OWN, *self._others]

    def inside(self, namespace: int) -> AbstractContextManager[None]:
        """This thread inside one of them. Raises OSError."""
        return inside(namespace, self._others)

    def doubt(self) -> None:
        """Where there is no route of ours, there may be one to be had by now: the next look tries."""
        self._stale.update(place for place, one in list(self._reservations.items()) if one.route is None)

    def follow_namespaces(self, *, anew: bool = False) -> None:
        """Open those that have come, and leave those that have gone, or are not meant any more.

        As of the last second, or as of now.
        """
        self._find(anew=anew)
        present = self.namespaces
        for namespace in present:
            if namespace not in self._asked:
                self._open(namespace)
        for gone in self._asked.keys() - set(present):
            self._leave(gone)

    def _find(self, *, anew: bool = False) -> None:
        if self._finder is not None:
            self._others = self._finder.find() if anew else self._finder.recent()

    def _leave(self, namespace: int) -> None:
        for place, one in self._reservations.items():
            if place[0] == namespace:
                self._withdraw(place, one)
        for place in [place for place in self._left if place[0] == namespace]:
            self._delete(namespace, self._left.pop(place))
        self._asked.pop(namespace).close()
        self._heard.pop(namespace).close()

    def close(self, keep: bool) -> None:
        """Take all routes away, unless they are to be kept for the next agent."""
        if not keep:
            for place, one in self._reservations.items():
                self._withdraw(place, one)
            self.forget_left()
        for netlink in (*self._asked.values(), *self._heard.values()):
            netlink.close()
        self._reservations.clear()

    def __len__(self) -> int:
        """How many destinations have a route of ours."""
        return sum(one.route is not None for one in self._reservations.values())

    @property
    def listeners(self) -> list[RouteSocket]:
        """For an event loop: when one can be read, heard() is to be called."""
        return list(self._heard.values())

    def place_of(self, source: str, destination: str, number: int = 0) -> Place | str:
        """Where the room for a flow is to be had; why there is none to be had, where there is not. Raises OSError.

        number is that of its network namespace, 0 where it is not known, or ours.
        """
        if ipaddress.IPv6Address(destination).is_link_local:
            return "its destination is a link-local address"
        self._find()
        for namespace in (number,) if number in self._others else self.namespaces:
            with suppress(OSError), self.inside(namespace):
                if can_bind(source):
                    return "both its ends are on this host" if can_bind(destination) else (namespace, destination)
        return "its source is no address of this host"

    def reserve(self, place: Place, source: str, now: float, *, keeps: bool = True) -> Room:
        """Keep room for one flow more; source is its source address. Not keeps: look how much would fit alone."""
        one = self._reservations.get(place)
        if one is None:
            one = self._reservations[place] = _Reservation(source, route=self._left.pop(place, None))
        one.users += 1
        one.keepers += keeps
        if one.users == 1 or (keeps and one.keepers == 1):
            self._establish(place, one, now)
        return one.room

    def release(self, place: Place, *, keeps: bool = True) -> None:
        """One flow less, as of reserve(); after the last for which room is kept the route is as it was."""
        one = self._reservations.get(place)
        if one is None:
            return
        one.users -= 1
        one.keepers -= keeps
        if not one.keepers:
            self._withdraw(place, one)
            one.room = Room(one.room.path_mtu)
        if one.users <= 0:
            del self._reservations[place]

    def forget_left(self) -> None:
        """Take away what an earlier agent left and nobody has asked for since."""
        for (namespace, _), route in self._left.items():
            self._delete(namespace, route)
        self._left.clear()

    def heard(self) -> bool:
        """Take in what the kernel tells of changes; whether a look is due."""
        for namespace, listener in self._heard.items():
            try:
                for kind, port, message in listener.heard():
                    if port != self._asked[namespace].port:
                        self._stale.update(self._touched(namespace, kind, message))
            except OSError:  # more than it could keep for us
                self._stale.update(place for place in list(self._reservations) if place[0] == namespace)
        return bool(self._stale)

    def learn(self, destination: str, path_mtu: int, now: float) -> bool:
        """A router has said what goes on to a destination; whether a look is due.

        The kernel passes over what it is told when its own packets, without our headers, would fit.
        """
        found = False
        for place, one in list(self._reservations.items()):
            if place[1] == destination and path_mtu < one.room.path_mtu:
                one.learned, one.learned_until = max(path_mtu, IPV6_MIN_MTU), now + _LEARNED_SECONDS
                self._stale.add(place)
                found = True
        return found

    def learn_of_peer(self, place: Place, mtu: int) -> bool:
        """The other end takes no longer packets than this, as long as room is kept for it; whether a look is due."""
        one = self._reservations.get(place)
        if one is None or mtu >= (one.peer or one.room.path_mtu):
            return False
        one.peer = mtu
        self._stale.add(place)
        return True

    def look(self, now: float) -> dict[Place, Room]:
        """See whether all is still as it should be, and make it so; the rooms that are other than before."""
        stale, self._stale = self._stale, set()
        changed = {}
        for place, one in self._reservations.items():
            before = one.room
            if place in stale or (one.learned and now >= one.learned_until) or self._is_not_ours(place, one, now):
                if now >= one.learned_until:
                    one.learned = 0
                self._establish(place, one, now)
            if one.room != before:
                changed[place] = one.room
        return changed

    def _touched(self, namespace: int, kind: int, message: bytes) -> Iterator[Place]:
        """Those that a change may concern."""
        # In one step: the other thread may be at them.
        reservations = list(self._reservations.items())
        mine = [(place, one) for place, one in reservations if place[0] == namespace]
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            index = link_index(message)
            yield from (place for place, one in mine if one.route is None or index in one.interfaces)
            return
        route = parse_route(message)
        if route.protocol == PROTOCOL and kind == RTM_NEWROUTE:
            return
        network = ipaddress.IPv6Network((route.destination, route.prefix), strict=False)
        yield from (place for place, _ in mine if ipaddress.IPv6Address(place[1]) in network)

    def _is_not_ours(self, place: Place, one: _Reservation, now: float) -> bool:
        """Whether packets go another way than by our route, or less than is reserved fits through."""
        if one.route is None and one.keepers:
            return False
        try:
            with self._asking(place[0]) as asked:
                found = asked.resolved(place[1], one.source)
        except OSError:
            return True
        if one.route is None:
            return 0 < found.mtu < one.room.path_mtu
        if found.protocol != PROTOCOL:
            return True
        if found.mtu < one.room.reserved:
            one.learned, one.learned_until = found.mtu, now + _LEARNED_SECONDS
            return True
        return False

    def _establish(self, place: Place, one: _Reservation, now: float) -> None:
        """Look the way to a destination up anew, and put our route there. What cannot be is in its room's why."""
        namespace, address = place
        self._withdraw(place, one)
        try:
            with self._asking(namespace) as asked:
                base = asked.matching(address, one.source)
                one.interfaces = base.interfaces
                of_links = _mtu_of_links(base.interfaces)
                own = base.mtu or of_links
                path_mtu = min(asked.resolved(address, one.source).mtu or own, one.learned or own, one.peer or own)
                if path_mtu < own and not one.learned and not one.peer:
                    one.learned, one.learned_until = path_mtu, now + _LEARNED_SECONDS
                reserved = path_mtu - self._room
                one.room = Room(path_mtu, 0, self._why_not(namespace, base, reserved))
                if one.room.why or not one.keepers:
                    return
                route = base.towards(address, PROTOCOL, _metrics(base, reserved, own))
                asked.add(route)
                one.route = route
                one.room = Room(path_mtu, reserved)
                if asked.matching(address, one.source).protocol != PROTOCOL:
                    self._withdraw(place, one)
                    one.room = Room(path_mtu, 0, "another rule or route comes before one of ours")
        except OSError as error:
            one.room = Room(one.room.path_mtu, 0, f"the kernel keeps no route for it: {error.strerror}")

    def _why_not(self, namespace: int, base: Route, reserved: int) -> str:
        if base.kind != RTN_UNICAST:
            return "no ordinary route leads there"
        if base.prefix == _HOST_PREFIX:
            return "its destination has a route of its own, which is left alone"
        if reserved < IPV6_MIN_MTU:
            return f"the path MTU is {reserved + self._room}: {IPV6_MIN_MTU} must stay for the kernel"
        if not all(self._covers(namespace, index) for index in base.interfaces):
            return "it leaves by an interface on which nothing is marked"
        return ""

    def _withdraw(self, place: Place, one: _Reservation) -> None:
        if one.route is not None:
            self._delete(place[0], one.route)
            one.route = None

    def _delete(self, namespace: int, route: Route) -> None:
        asked = self._asked.get(namespace)
        if asked is None:
            return  # the namespace has gone
        try:
            asked.delete(route)
        except OSError as error:
            if not is_gone(error):
                log.error("our route to %s cannot be taken away: %s", route.destination, error.strerror)

    @contextmanager
    def _asking(self, namespace: int) -> Iterator[RouteSocket]:
        with self.inside(namespace):
            if namespace not in self._asked:
                self._open(namespace)
            yield self._asked[namespace]


def remove_left(patterns: Sequence[str]) -> list[str]:
    """Take away the routes of agents that are no more, in this namespace and those of the patterns; their destinations.

    Raises OSError.
    """
    done = []
    for namespace in ("", *Finder([one for one in patterns if one]).paths()):
        try:
            with entered(namespace), RouteSocket() as asked:
                for route in asked.routes_of(PROTOCOL):
                    with suppress(ProcessLookupError):
                        asked.delete(route)
                        done.append(route.destination)
        except FileNotFoundError:
            continue  # a namespace that has gone has taken its routes with it
    return done


def _metrics(base: Route, reserved: int, own: int) -> dict[int, bytes]:
    """Of the route: what others send to us is not to become shorter for what we add to our packets."""
    metrics = base.metrics
    metrics[RTAX_MTU] = pack_number(reserved)
    metrics.setdefault(RTAX_ADVMSS, pack_number(own - _TCP_AND_IPV6))
    return metrics


def _mtu_of_links(interfaces: Iterable[int]) -> int:
    """What IPv6 may send by all of them, in this thread's network namespace. Raises OSError."""
    found = []
    for index in interfaces:
        text = (_SYSCTL / socket.if_indextoname(index) / "mtu").read_text(encoding="ascii")
        found.append(int(text))
    return min(found, default=IPV6_MIN_MTU)
