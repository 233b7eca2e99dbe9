"""Routes and links of a network namespace, as the kernel tells them and takes them (rtnetlink).

Read and written by hand, as the octets of a route are copied whole into another: what is not known here stays as it is.

Source: include/uapi/linux/rtnetlink.h, if_link.h; net/ipv6/route.c, net/core/rtnetlink.c of the kernel.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Self

import msgspec

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTMGRP_LINK, RTMGRP_IPV6_ROUTE = 0x1, 0x400
RTN_UNICAST, RTN_LOCAL = 1, 2
RTAX_LOCK, RTAX_MTU, RTAX_ADVMSS = 1, 2, 8

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_RTM_F_FIB_MATCH = 0x2000
_RTNH_F_ONLINK = 4
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_NEXTHOP = struct.Struct("=HBBi")  # rtnexthop: length, flags, hops, interface
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
_KIND_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_RECEIVE_OCTETS = 1 << 16
_HOST_PREFIX = 128

_DST, _SRC, _IIF, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH = range(1, 10)
_CACHEINFO, _TABLE, _VIA, _ENCAP_TYPE, _ENCAP, _EXPIRES, _NH_ID = 12, 15, 18, 21, 22, 23, 30
# Of a route that another is made from: all that does not say where packets go or whence the route came.
_NOT_COPIED = frozenset({_DST, _IIF, _METRICS, _CACHEINFO, _EXPIRES})
_TOLD_BY_NEXTHOP = frozenset({_OIF, _GATEWAY, _MULTIPATH, _VIA, _ENCAP, _ENCAP_TYPE})
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_GSO_MAX_SIZE, _IFLA_INFO_KIND = 10, 18, 41, 1

Attributes = tuple[tuple[int, bytes], ...]


class Route(msgspec.Struct, frozen=True):
    """A route of IPv6; attributes are those of the kernel, in its order."""

    prefix: int
    source_prefix: int
    table: int
    protocol: int
    kind: int
    flags: int
    attributes: Attributes

    def attribute(self, number: int) -> bytes:
        """Empty where there is none."""
        return next((value for kind, value in self.attributes if kind == number), b"")

    @property
    def destination(self) -> str:
        """The address; "::" for the default route."""
        return socket.inet_ntop(socket.AF_INET6, self.attribute(_DST) or bytes(16))

    @property
    def metrics(self) -> dict[int, bytes]:
        return dict(parse_attributes(self.attribute(_METRICS)))

    @property
    def mtu(self) -> int:
        """What the route says itself; 0 where it goes by the interface."""
        value = self.metrics.get(RTAX_MTU)
        return 0 if value is None else int(_NUMBER.unpack(value)[0])

    @property
    def interfaces(self) -> list[int]:
        """The indexes of those by which packets leave."""
        found = [_NUMBER.unpack(value)[0] for kind, value in self.attributes if kind == _OIF]
        rest = self.attribute(_MULTIPATH)
        while len(rest) >= _NEXTHOP.size:
            length, _, _, index = _NEXTHOP.unpack_from(rest)
            found.append(index)
            rest = rest[max(length + 3 & ~3, _NEXTHOP.size) :]
        return found

    def towards(self, address: str, protocol: int, metrics: dict[int, bytes]) -> Route:
        """The same way, for one address alone, as a route of another protocol and with other metrics."""
        left_out = _NOT_COPIED | (_TOLD_BY_NEXTHOP if self.attribute(_NH_ID) else frozenset())
        kept = [(number, value) for number, value in self.attributes if number not in left_out]
        if not self.source_prefix:
            kept = [(number, value) for number, value in kept if number != _SRC]
        packed = b"".join(pack_attribute(number, value) for number, value in sorted(metrics.items()))
        own = [(_DST, socket.inet_pton(socket.AF_INET6, address)), (_METRICS, packed)]
        flags = self.flags & _RTNH_F_ONLINK
        return Route(_HOST_PREFIX, self.source_prefix, self.table, protocol, RTN_UNICAST, flags, (*own, *kept))


class Link(msgspec.Struct, frozen=True):
    """A network interface: its index, that of the one which it is a port of (0: none), and its kind ("bond", "")."""

    index: int
    master: int
    kind: str


class RouteSocket:
    """A netlink socket in the network namespace of the thread that makes it, wherever it is used."""

    def __init__(self, groups: int = 0) -> None:
        """groups are those of RTMGRP_* that it hears. Raises OSError."""
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._netlink.bind((0, groups))
        self._netlink.setblocking(not groups)
        self.port = int(self._netlink.getsockname()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._netlink.close()

    def fileno(self) -> int:
        """For an event loop."""
        return self._netlink.fileno()

    def heard(self) -> Iterator[tuple[int, int, bytes]]:
        """Kind, port of whoever caused it, and content of each message that came. OSError (ENOBUFS): some are lost."""
        while True:
            try:
                octets = self._netlink.recv(_RECEIVE_OCTETS)
            except BlockingIOError:
                return
            yield from _messages(octets)

    def matching(self, address: str, source: str) -> Route:
        """The route by which packets go to an address, as it is in its table. Raises OSError (ENETUNREACH: none)."""
        return self._get(address, source, _RTM_F_FIB_MATCH)

    def resolved(self, address: str, source: str) -> Route:
        """The same as packets use it: what the kernel has learned of the path MTU is in it."""
        return self._get(address, source, 0)

    def is_local(self, address: str) -> bool:
        """Whether packets to an address, of either IP version, stay in this namespace. Raises OSError."""
        family, octets = (socket.AF_INET6, 16) if ":" in address else (socket.AF_INET, 4)
        payload = _ROUTE.pack(family, 8 * octets, 0, 0, 0, 0, 0, 0, 0)
        payload += pack_attribute(_DST, socket.inet_pton(family, address))
        try:
            return parse_route(self._ask(RTM_GETROUTE, 0, payload)[0]).kind == RTN_LOCAL
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return False
            raise

    def add(self, route: Route) -> None:
        """Add a route. OSError (EEXIST) where there is one with its prefix and metric, whosever it is."""
        self._ask(RTM_NEWROUTE, _ACK | _CREATE | _EXCL, _pack_route(route))

    def delete(self, route: Route) -> None:
        """Take away that of its prefix, table and protocol. OSError (ESRCH) where there is none."""
        wanted = {_DST, _SRC, _TABLE, _PRIORITY} if route.source_prefix else {_DST, _TABLE, _PRIORITY}
        attributes = tuple((number, value) for number, value in route.attributes if number in wanted)
        named = msgspec.structs.replace(route, attributes=attributes, kind=0, flags=0)
        self._ask(RTM_DELROUTE, _ACK, _pack_route(named))

    def routes_of(self, protocol: int) -> list[Route]:
        """All of one protocol, of every table."""
        payload = _ROUTE.pack(socket.AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0)
        answers = self._ask(RTM_GETROUTE, _DUMP, payload)
        return [route for route in map(parse_route, answers) if route.protocol == protocol]

    def links(self) -> list[Link]:
        """Every interface."""
        return [_parse_link(one) for one in self._ask(RTM_GETLINK, _DUMP, _LINK.pack(0, 0, 0, 0, 0))]

    def gso_max_size(self, index: int) -> int:
        """How many octets a packet may have that is cut into segments by an interface, or behind it. Raises OSError."""
        [answer] = self._ask(RTM_GETLINK, 0, _LINK.pack(0, 0, index, 0, 0))
        value = dict(parse_attributes(answer[_LINK.size :])).get(_IFLA_GSO_MAX_SIZE)
        return int(_NUMBER.unpack(value)[0]) if value else 0

    def _get(self, address: str, source: str, flags: int) -> Route:
        payload = _ROUTE.pack(socket.AF_INET6, _HOST_PREFIX, _HOST_PREFIX, 0, 0, 0, 0, 0, flags)
        for number, text in ((_DST, address), (_SRC, source)):
            payload += pack_attribute(number, socket.inet_pton(socket.AF_INET6, text))
        return parse_route(self._ask(RTM_GETROUTE, 0, payload)[0])

    def _ask(self, kind: int, flags: int, payload: bytes) -> list[bytes]:
        """The answers, without the headers of netlink."""
        request = _HEADER.pack(_HEADER.size + len(payload), kind, _REQUEST | flags, 0, 0) + payload
        self._netlink.sendto(request, (0, 0))
        found: list[bytes] = []
        while True:
            for answer, _, message in _messages(self._netlink.recv(_RECEIVE_OCTETS)):
                if answer == _NLMSG_DONE:
                    return found
                if answer == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", message)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return found
                found.append(message)
            if not flags & (_ACK | _DUMP) and found:
                return found


def parse_route(message: bytes) -> Route:
    """What follows the netlink header of an RTM_NEWROUTE or RTM_DELROUTE."""
    _, prefix, source_prefix, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(message)
    attributes = tuple(parse_attributes(message[_ROUTE.size :]))
    told = dict(attributes).get(_TABLE)
    number = table if told is None else int(_NUMBER.unpack(told)[0])
    return Route(prefix, source_prefix, number, protocol, kind, flags, attributes)


def parse_attributes(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and value of each."""
    at = 0
    while at + _ATTRIBUTE.size <= len(octets):
        length, number = _ATTRIBUTE.unpack_from(octets, at)
        if length < _ATTRIBUTE.size:
            return
        yield number & _KIND_MASK, octets[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def pack_attribute(number: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, number) + value + bytes(-length % 4)


def pack_number(value: int) -> bytes:
    """The value of an attribute that is a number of 32 bits."""
    return _NUMBER.pack(value)


def link_index(message: bytes) -> int:
    """Of what follows the netlink header of an RTM_NEWLINK or RTM_DELLINK."""
    return int(_LINK.unpack_from(message)[2])


def is_gone(error: OSError) -> bool:
    """Whether a route could not be taken away because there is none."""
    return error.errno in (errno.ESRCH, errno.ENOENT, errno.ENODEV)


def _pack_route(route: Route) -> bytes:
    # Tables above 255 are named in an attribute alone.
    table = route.table if route.table < 256 else 0  # noqa: PLR2004
    octets = _ROUTE.pack(
        socket.AF_INET6, route.prefix, route.source_prefix, 0, table, route.protocol, 0, route.kind, route.flags
    )
    return octets + b"".join(pack_attribute(number, value) for number, value in route.attributes)


def _parse_link(message: bytes) -> Link:
    attributes = dict(parse_attributes(message[_LINK.size :]))
    master = attributes.get(_IFLA_MASTER)
    information = dict(parse_attributes(attributes.get(_IFLA_LINKINFO, b"")))
    return Link(
        link_index(message),
        int(_NUMBER.unpack(master)[0]) if master else 0,
        information.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace"),
    )


def _messages(octets: bytes) -> Sequence[tuple[int, int, bytes]]:
    """Kind, port and what follows the header, of each message in what was received."""
    found = []
    at = 0
    while at + _HEADER.size <= len(octets):
        length, kind, _, _, port = _HEADER.unpack_from(octets, at)
        if length < _HEADER.size:
            break
        found.append((kind, port, octets[at + _HEADER.size : at + length]))
        at += length + 3 & ~3
    return found
