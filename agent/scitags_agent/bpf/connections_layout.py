"""The C structures of bpf/connections.h as octets, and what the kernel and libbpf call the things beside them."""

from __future__ import annotations

import ctypes
import enum
import socket
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from scitags_core.flow import PORT_MAX, FlowKey, canonical_address

MAX_FILTERS = 32
_SETTINGS = struct.Struct("=QIIBB6x")
_FILTER = struct.Struct("=4H")
SETTINGS_OCTETS = _SETTINGS.size + MAX_FILTERS * _FILTER.size
_CONNECTION = struct.Struct("=5Q16s16s11I2H2B6x")
_NOT_MEASURED = 0xFFFFFFFF
_ADDRESSES_REMEMBERED = 1 << 14

# linux/bpf.h
PROGRAM_TYPE_SOCK_OPS = 13
ATTACH_TYPE_CGROUP_SOCK_OPS = 3
HELPER_TCP_SOCK = 96
HELPER_GET_NETNS_COOKIE = 122


class Event(enum.IntEnum):
    """enum connection_event."""

    OPENING = 0  # its first SYN is about to leave
    ACTIVE = 1  # established, by this host
    PASSIVE = 2  # established, by the other
    CLOSED = 3


class Report(enum.IntEnum):
    """enum report."""

    WRITTEN = 0
    LOST = 1


class TcpState(enum.IntEnum):
    """The states of TCP, by the kernel's numbers (enum in linux/bpf.h)."""

    NONE = 0
    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


class PortFilter(msgspec.Struct, frozen=True):
    """Connections whose local and remote ports are in these ranges, ends included. Port 0..65535."""

    local: tuple[int, int] = (0, PORT_MAX)
    remote: tuple[int, int] = (0, PORT_MAX)


class Connection(msgspec.Struct, frozen=True, gc=False):
    """What the kernel says of a connection when it opens or closes.

    cookie, netns     the socket's and its network namespace's (0 when the kernel does not tell)
    when              nanoseconds, CLOCK_MONOTONIC
    sent, received    octets of payload, each counted once however often it was sent; sent and acknowledged
    key               from the local end to the remote one
    old_state         the state of TCP that it closed from
    interface         index of the interface that the socket is bound to, 0 for none
    rtt, min_rtt      microseconds, 0 while there is none; rtt is smoothed
    mss               octets
    congestion_window, retransmitted, lost, segments_sent, segments_received, delivered, delivered_ce
                      segments; delivered ones are 0 when the kernel does not tell
    """

    cookie: int
    netns: int
    when: int
    sent: int
    received: int
    key: FlowKey
    event: Event
    old_state: TcpState
    interface: int
    rtt: int
    min_rtt: int
    mss: int
    congestion_window: int
    retransmitted: int
    lost: int
    segments_sent: int
    segments_received: int
    delivered: int
    delivered_ce: int


def pack_settings(
    filters: Sequence[PortFilter], events: Iterable[Event], *, netns: int, has_netns_cookie: bool, has_tcp_sock: bool
) -> bytes:
    """struct settings. Filters beyond what it has room for are widened to one that lets everything through."""
    kept = list(filters) if len(filters) <= MAX_FILTERS else [PortFilter()]
    mask = sum(1 << event for event in set(events))
    packed = b"".join(_FILTER.pack(*one.local, *one.remote) for one in kept)
    return (_SETTINGS.pack(netns, mask, len(kept), has_netns_cookie, has_tcp_sock) + packed).ljust(
        SETTINGS_OCTETS, b"\0"
    )


def unpack_connection(octets: bytes) -> Connection:
    """struct connection."""
    cookie, netns, when, sent, received, local, remote, interface, rtt, min_rtt, *counts, near, far, event, state = (
        _CONNECTION.unpack(octets)
    )
    key = FlowKey(_address(local), near, _address(remote), far)
    if min_rtt == _NOT_MEASURED:
        min_rtt = 0
    return Connection(
        cookie, netns, when, sent, received, key, Event(event), TcpState(state), interface, rtt, min_rtt, *counts
    )


@lru_cache(_ADDRESSES_REMEMBERED)
def _address(octets: bytes) -> str:
    return canonical_address(socket.inet_ntop(socket.AF_INET6, octets))


RING_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
