"""The kernel's sock_diag by its messages: what is asked of it, and what it says of a socket.

They are read here, with struct: pyroute2 0.9 takes 100 us and 17 KB for a socket (bench/sock_diag.py), mistakes an
error for a message of IPv4, and can therefore not look up one connection.

Source: include/uapi/linux/{netlink,sock_diag,inet_diag}.h, net/ipv4/{inet,tcp,udp}_diag.c, net/core/sock_diag.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import msgspec

from scitags_core.flow import FlowKey, Transport, canonical_address

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
ERROR, DONE = 2, 3  # kinds of message: NLMSG_ERROR, NLMSG_DONE
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300
_NO_COOKIE = (1 << 64) - 1
_ALL_EXTENSIONS = 0xFF  # request bit N - 1 for attribute N, 1 to 8; the others come unasked
_ALL_STATES = (1 << 32) - 1
_PROTOCOLS: dict[Transport, int] = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
FAMILIES = (socket.AF_INET, socket.AF_INET6)

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
RECEIVE_OCTETS = 1 << 16  # the kernel hands over at most 32 KB of a dump at a time
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
_OPEN_OR_OPENING = sum(1 << state for state in OPEN_STATES | {SYN_SENT})


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


def ask_for_all(
    netlink: socket.socket, family: int, protocol: Transport, ports: tuple[int, int], *, details: bool
) -> None:
    """For every socket of a family that is open or about to be; ports are the local and the remote one, 0 for any."""
    payload = (
        _REQUEST.pack(family, _PROTOCOLS[protocol], _ALL_EXTENSIONS if details else 0, _OPEN_OR_OPENING)
        + _PORTS.pack(*ports)
        + _REST_OF_ID.pack(b"", b"", 0, _NO_COOKIE)
    )
    _send(netlink, payload, _NLM_F_REQUEST | _NLM_F_DUMP)


def ask_for_one(netlink: socket.socket, key: FlowKey, interface: int, *, details: bool) -> None:
    """For the socket whose near end is the key's source; interface is what it is bound to, 0 for none."""
    near, far = (_packed(key.src), key.src_port), (_packed(key.dst), key.dst_port)
    if key.protocol == "udp":  # swapped "for historical reasons", net/ipv4/udp_diag.c
        near, far = far, near
    family = socket.AF_INET6 if key.is_ipv6 else socket.AF_INET
    payload = (
        _REQUEST.pack(family, _PROTOCOLS[key.protocol], _ALL_EXTENSIONS if details else 0, _ALL_STATES)
        + _PORTS.pack(near[1], far[1])
        + _REST_OF_ID.pack(near[0], far[0], interface, _NO_COOKIE)
    )
    _send(netlink, payload, _NLM_F_REQUEST)


def parse(message: bytes, protocol: Transport, *, details: bool = False, namespace: int = 0) -> Connection | None:
    """One of the kernel's messages; None for a socket that is not connected."""
    connection = connection_of(message, protocol, details=details, namespace=namespace)
    return connection if connection.remote_port else None


def connection_of(message: bytes, protocol: Transport, *, details: bool, namespace: int) -> Connection:
    """The same, also for one that is not connected."""
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


def cookie_of(message: bytes) -> int:
    """The kernel's name of the socket that a message is about."""
    cookie: int
    (cookie,) = _COOKIE.unpack_from(message, _COOKIE_AT)
    return cookie


def departed_protocol(message: bytes) -> Transport:
    """Of a socket that has gone."""
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
def is_link_local(address: str) -> bool:
    """Whether it wants an interface besides."""
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


def messages(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and whole of each message in what was received."""
    offset = 0
    while offset + _HEADER.size <= len(octets):
        length, kind, *_ = _HEADER.unpack_from(octets, offset)
        if length < _HEADER.size:
            break
        yield kind, octets[offset : offset + length]
        offset += length + 3 & ~3


def refusal(message: bytes) -> SockDiagError:
    """What a message of the kind ERROR says."""
    (code,) = _ERROR.unpack_from(message, _HEADER.size)
    text = os.strerror(-code)
    if -code == errno.ENOENT:
        text = "not found, or the kernel has no diag module for this protocol"
    return SockDiagError(-code, f"sock_diag: {text}")
