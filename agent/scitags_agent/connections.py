"""This host's TCP and UDP connections, as the kernel's sock_diag knows them.

    dump("tcp")           every connection (IPv4, IPv6, IPv4 on IPv6 sockets)
    Lookup().find(key)    one connection by its 5-tuple; what it costs does not depend on how many there are
    Departures            each socket that goes, as it goes, with its last tcp_info

All of the network namespace in which the netlink socket was made: this thread's, or that of a Place elsewhere
(scitags_agent.open_namespaces). None of it needs privileges, but sockets in other user namespaces, whose owner is
shown as nobody.

The netlink messages are read here, with struct: pyroute2 0.9 takes 100 us and 17 KB for a socket (bench/sock_diag.py),
mistakes an error for a message of IPv4, and can therefore not look up one connection.

Source: include/uapi/linux/{netlink,sock_diag,inet_diag}.h, net/ipv4/{inet,tcp,udp}_diag.c, net/core/sock_diag.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, closing
from functools import lru_cache
from typing import Final, Protocol, Self

import msgspec

from scitags_core.flow import FlowKey, Transport, canonical_address

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300
_NO_COOKIE = (1 << 64) - 1
_ALL_EXTENSIONS = 0xFF  # request bit N - 1 for attribute N, 1 to 8; the others come unasked
_GROUPS = 0b1111  # SKNLGRP_INET_TCP_DESTROY, _UDP_DESTROY, INET6_TCP_DESTROY, INET6_UDP_DESTROY
_PROTOCOLS: dict[Transport, int] = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_SO_RCVBUFFORCE = 33

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2: family, protocol, extensions, states
_PORTS = struct.Struct("!HH")
_REST_OF_ID = struct.Struct("=16s16sIQ")  # inet_diag_sockid: source, destination, interface, cookie
_MESSAGE = struct.Struct("=BBBBHH16s16sIQIIIII")  # inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_COOKIE = struct.Struct("=Q")
_COOKIE_AT = _HEADER.size + 44
_ATTRIBUTES_AT = _HEADER.size + _MESSAGE.size

MESSAGE_AT: Final = _HEADER.size  # of inet_diag_msg, in Connection.message
_RECEIVE_OCTETS = 1 << 16  # the kernel hands over at most 32 KB of a dump at a time
_DEPARTURES_BUFFER_OCTETS = 1 << 25  # a thousand or so for each; the kernel takes them only as they are needed
_DEPARTURES_AT_ONCE = 256
_ADDRESSES_REMEMBERED = 1 << 14
_SWAPPED: Final = sys.byteorder == "little"

# States of a TCP socket, include/net/tcp_states.h. A UDP socket is 1 when connected, else 7.
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING = range(
    1, 12
)
# Those of a connection over which data goes, or has gone and may not all be acknowledged.
OPEN_STATES = frozenset({ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING})

# Attributes of a message, enum in inet_diag.h.
MEMINFO, INFO, VEGASINFO, CONG, TOS, TCLASS, SKMEMINFO, SHUTDOWN, DCTCPINFO, PROTOCOL = range(1, 11)
BBRINFO = 16
CGROUP_ID = 21


class Connection(msgspec.Struct, frozen=True, gc=False):
    """One socket that is connected. Addresses are canonical, IPv4 on an IPv6 socket is IPv4.

    state       one of the numbers above
    uid, inode  of the socket; inode 0: no process has it any more. Departures know neither
    cookie      the kernel's own name for the socket, unique until the next boot
    cgroup      id of the cgroup2 of whoever made the socket; 0: not said
    interface   index of the one that the socket is bound to, as with a link-local address; 0: any
    message     the kernel's message whole, for attributes(); empty when details were not asked for
    namespace   the network namespace, as in FlowKey
    """

    protocol: Transport
    local: str
    local_port: int
    remote: str
    remote_port: int
    state: int
    uid: int
    inode: int
    cookie: int
    cgroup: int = 0
    interface: int = 0
    message: bytes = b""
    namespace: int = 0

    @property
    def key(self) -> FlowKey:
        """The 5-tuple with our end as its source."""
        return FlowKey(self.local, self.local_port, self.remote, self.remote_port, self.protocol, self.namespace)

    def attributes(self) -> dict[int, bytes]:
        """What the kernel says besides, by the numbers above; the structs are those of inet_diag.h."""
        return attributes(self.message)


class SockDiagError(OSError):
    """The kernel has no sock_diag, or refused."""


class Place(Protocol):
    """A network namespace that can be asked."""

    @property
    def number(self) -> int:
        """As in FlowKey; 0 is the agent's own."""

    def borrow(self) -> AbstractContextManager[socket.socket]:
        """A sock_diag socket for one dump. Raises SockDiagError."""

    def interfaces(self, zone: str) -> list[int]:
        """The indexes of those that a zone index can mean; of all where it is empty."""


class Here:
    """The network namespace of the thread that uses this: the agent's own."""

    number = 0

    def borrow(self) -> AbstractContextManager[socket.socket]:
        return closing(open_netlink())

    def interfaces(self, zone: str) -> list[int]:
        if not zone:
            return [index for index, _ in socket.if_nameindex()]
        try:
            return [int(zone) if zone.isdigit() else socket.if_nametoindex(zone)]
        except OSError:
            return []


HERE: Final[Place] = Here()


def dump(
    protocol: Transport, *, local_port: int = 0, remote_port: int = 0, details: bool = False, place: Place = HERE
) -> Iterator[Connection]:
    """Every connected socket of a protocol, TIME_WAIT left out; by ports where given, which the kernel sorts out.

    Not a picture of one instant: a socket that lives on may be missed when others go meanwhile, so that whoever
    concludes that one is gone looks it up. Each step that reads from the kernel takes well under a millisecond, so
    that an event loop can do other things in between. Raises SockDiagError.
    """
    for message in _dump(protocol, local_port, remote_port, _ALL_EXTENSIONS if details else 0, place):
        connection = parse(message, protocol, details=details, namespace=place.number)
        if connection is not None:
            yield connection


def survey(protocol: Transport, known: Container[int], place: Place = HERE) -> Iterator[tuple[int, Connection | None]]:
    """As dump, but for the cookies that are known the cookie alone: this takes half the time."""
    for message in _dump(protocol, 0, 0, 0, place):
        (cookie,) = _COOKIE.unpack_from(message, _COOKIE_AT)
        if cookie in known:
            yield cookie, None
        else:
            connection = parse(message, protocol, namespace=place.number)
            if connection is not None:
                yield cookie, connection


def _dump(protocol: Transport, local_port: int, remote_port: int, extensions: int, place: Place) -> Iterator[bytes]:
    states = sum(1 << state for state in OPEN_STATES | {SYN_SENT})
    for family in _FAMILIES:
        payload = (
            _REQUEST.pack(family, _PROTOCOLS[protocol], extensions, states)
            + _PORTS.pack(local_port, remote_port)
            + _REST_OF_ID.pack(b"", b"", 0, _NO_COOKIE)
        )
        with place.borrow() as netlink:
            _send(netlink, payload, _NLM_F_REQUEST | _NLM_F_DUMP)
            done = False
            while not done:
                for kind, message in _messages(netlink.recv(_RECEIVE_OCTETS)):
                    if kind == _NLMSG_DONE:
                        done = True
                        break
                    if kind == _NLMSG_ERROR:
                        raise _refusal(message)
                    yield message


class Lookup:
    """Looks up one connection at a time, over a netlink socket of its own."""

    def __init__(self, place: Place = HERE, netlink: socket.socket | None = None) -> None:
        """netlink is one that was opened there. Raises SockDiagError where the kernel has no sock_diag."""
        self._place = place
        self._netlink = open_netlink() if netlink is None else netlink

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self._netlink.fileno() >= 0

    def find(self, key: FlowKey, *, zone: str = "", details: bool = True) -> Connection | None:
        """The connection whose near end is the key's source, in whatever state, or None.

        Which namespace the key names is the caller's affair. zone is the zone index of a link-local address; without
        it, every interface is tried. Not found is a socket that is bound to a device (SO_BINDTODEVICE), but by a dump.
        Raises SockDiagError.
        """
        here = key.within(self._place.number)
        for interface in self._place.interfaces(zone) if _is_link_local(key.src) else (0,):
            found = self._find(here, interface, details)
            if found is not None:
                return found
        return None

    def _find(self, key: FlowKey, interface: int, details: bool) -> Connection | None:
        local, remote = _packed(key.src), _packed(key.dst)
        near, far = (local, key.src_port), (remote, key.dst_port)
        if key.protocol == "udp":  # swapped "for historical reasons", net/ipv4/udp_diag.c
            near, far = far, near
        payload = (
            _REQUEST.pack(
                socket.AF_INET6 if key.is_ipv6 else socket.AF_INET,
                _PROTOCOLS[key.protocol],
                _ALL_EXTENSIONS if details else 0,
                (1 << 32) - 1,
            )
            + _PORTS.pack(near[1], far[1])
            + _REST_OF_ID.pack(near[0], far[0], interface, _NO_COOKIE)
        )
        _send(self._netlink, payload, _NLM_F_REQUEST)
        for kind, message in _messages(self._netlink.recv(_RECEIVE_OCTETS)):
            if kind == _NLMSG_ERROR:
                refusal = _refusal(message)
                if refusal.errno == errno.ENOENT:
                    return None
                raise refusal
            found = parse(message, key.protocol, details=details, namespace=key.namespace)
            # The kernel falls back to a socket that listens there, or to one that takes what comes from anywhere.
            if found is not None and found.key == key:
                return found
        return None


class Departures:
    """Hears of each TCP and UDP socket of a namespace as it goes, from Linux 4.7 on.

    What is told of one: both ends, cookie, and with TCP the last tcp_info. A TCP socket goes when the connection has
    been closed on both sides and its last octet acknowledged (TIME_WAIT is a socket no more). Of one that its owner
    aborted (SO_LINGER of 0) only the cookie and the local port are left: its remote port is 0. When sockets go faster
    than they are read, some are missed: lost counts how often that happened.
    """

    def __init__(
        self, heard: Callable[[Connection], None], namespace: int = 0, netlink: socket.socket | None = None
    ) -> None:
        """heard is called from read(). netlink is a socket that was opened in another namespace.

        Raises SockDiagError where the kernel does not tell.
        """
        self.lost = 0
        self._heard = heard
        self._namespace = namespace
        self._netlink = open_netlink() if netlink is None else netlink
        try:
            self._netlink.setblocking(False)
            try:
                self._netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _DEPARTURES_BUFFER_OCTETS)
            except PermissionError:
                self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _DEPARTURES_BUFFER_OCTETS)
            self._netlink.bind((0, _GROUPS))
        except OSError as error:
            self._netlink.close()
            raise SockDiagError(error.errno, f"the kernel does not tell of sockets that go: {error.strerror}") from None

    def fileno(self) -> int:
        """For an event loop's add_reader(departures, departures.read)."""
        return self._netlink.fileno()

    def read(self) -> int:
        """Take what is there, up to a bound so that others get their turn; how many sockets it told of."""
        for count in range(_DEPARTURES_AT_ONCE):
            try:
                octets = self._netlink.recv(_RECEIVE_OCTETS)
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            for _, message in _messages(octets):
                protocol = _departed_protocol(message)
                self._heard(_connection(message, protocol, details=True, namespace=self._namespace))
        return _DEPARTURES_AT_ONCE

    def close(self) -> None:
        """Hear no more."""
        self._netlink.close()


def parse(message: bytes, protocol: Transport, *, details: bool = False, namespace: int = 0) -> Connection | None:
    """One of the kernel's messages; None for a socket that is not connected."""
    connection = _connection(message, protocol, details=details, namespace=namespace)
    return connection if connection.remote_port else None


def _connection(message: bytes, protocol: Transport, *, details: bool, namespace: int) -> Connection:
    fields = _MESSAGE.unpack_from(message, _HEADER.size)
    family, state, _, _, local_port, remote_port, local, remote, interface, cookie, *_, uid, inode = fields
    if _SWAPPED:
        local_port, remote_port = socket.ntohs(local_port), socket.ntohs(remote_port)
    return Connection(
        protocol,
        _address(family, local),
        local_port,
        _address(family, remote),
        remote_port,
        state,
        uid,
        inode,
        cookie,
        _cgroup(message),
        interface,
        message if details else b"",
        namespace,
    )


def attributes(message: bytes) -> dict[int, bytes]:
    """The attributes of one of the kernel's messages, by number."""
    found: dict[int, bytes] = {}
    offset = _ATTRIBUTES_AT
    while offset + _ATTRIBUTE.size <= len(message):
        length, number = _ATTRIBUTE.unpack_from(message, offset)
        if length < _ATTRIBUTE.size:
            break
        found[number] = message[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3
    return found


def _cgroup(message: bytes) -> int:
    offset, end = _ATTRIBUTES_AT, len(message)
    while offset < end:
        length, number = _ATTRIBUTE.unpack_from(message, offset)
        if number == CGROUP_ID:
            return int.from_bytes(message[offset + _ATTRIBUTE.size : offset + length], sys.byteorder)
        if length < _ATTRIBUTE.size:
            break
        offset += length + 3 & ~3
    return 0


def _departed_protocol(message: bytes) -> Transport:
    return "udp" if attributes(message).get(PROTOCOL, b"")[:1] == bytes([socket.IPPROTO_UDP]) else "tcp"


@lru_cache(maxsize=_ADDRESSES_REMEMBERED)
def _address(family: int, octets: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, octets[:4])
    return canonical_address(socket.inet_ntop(socket.AF_INET6, octets))


@lru_cache(maxsize=_ADDRESSES_REMEMBERED)
def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@lru_cache(maxsize=_ADDRESSES_REMEMBERED)
def _is_link_local(address: str) -> bool:
    return ":" in address and int.from_bytes(_packed(address)[:2]) & 0xFFC0 == 0xFE80  # noqa: PLR2004


def open_netlink() -> socket.socket:
    """A sock_diag socket in this thread's network namespace. Raises SockDiagError."""
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    except OSError as error:
        raise SockDiagError(error.errno, f"no sock_diag: {error.strerror}") from None
    return netlink


def _send(netlink: socket.socket, payload: bytes, flags: int) -> None:
    netlink.sendto(_HEADER.pack(_HEADER.size + len(payload), _SOCK_DIAG_BY_FAMILY, flags, 0, 0) + payload, (0, 0))


def _messages(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and whole of each message in what was received."""
    offset = 0
    while offset + _HEADER.size <= len(octets):
        length, kind, *_ = _HEADER.unpack_from(octets, offset)
        if length < _HEADER.size:
            break
        yield kind, octets[offset : offset + length]
        offset += length + 3 & ~3


def _refusal(message: bytes) -> SockDiagError:
    (code,) = _ERROR.unpack_from(message, _HEADER.size)
    text = os.strerror(-code)
    if -code == errno.ENOENT:
        text = "not found, or the kernel has no diag module for this protocol"
    return SockDiagError(-code, f"sock_diag: {text}")
