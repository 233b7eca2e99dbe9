"""Connections that this host has accepted, for whose extension headers its kernel makes no room.

A header that is set on a live socket takes octets of every packet. For a connection that this host has opened, the
kernel makes its segments shorter by them; for one that it has accepted it does not: full segments then are too long,
never leave, and the transfer stands still (seen with Linux 6.18, and with a real dCache; ipv6_update_options of
net/ipv6/ipv6_sockglue.c passes over sockets that bear no IPv4 address).
"""

from __future__ import annotations

import socket
from pathlib import Path

from scitags_agent import tcp_info

_LISTEN = "0A"  # TCP_LISTEN, as it is shown
_HEADERS_OCTETS = 40 + 20  # IPv6 and TCP
_STAMPS, _STAMPS_OCTETS = 1, 12  # TCPI_OPT_TIMESTAMPS
_LISTENERS = Path("/proc/thread-self/net/tcp6")


def is_accepted(one: socket.socket) -> bool:
    """Whether something listens at a TCP socket's own port, in the network namespace of this thread.

    That is so with servers; one that listens no more is found out by fits, once its header is set.
    """
    if one.type != socket.SOCK_STREAM:
        return False
    port = f":{one.getsockname()[1]:04X} "
    with _LISTENERS.open() as sockets:
        next(sockets)
        for line in sockets:
            _, local, _, state, _ = line.split(maxsplit=4)
            if state != _LISTEN:  # the listening ones come first
                return False
            if f"{local} ".endswith(port):
                return True
    return False


def fits(one: socket.socket, octets: int) -> bool:
    """Whether a full segment of a TCP socket leaves room for so many octets of extension headers; True for others."""
    if one.type != socket.SOCK_STREAM:
        return True
    info = tcp_info.decode(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcp_info.TCP_INFO_OCTETS))
    stamps = _STAMPS_OCTETS if info["options"] & _STAMPS else 0
    return info["snd_mss"] + _HEADERS_OCTETS + stamps + octets <= info["pmtu"]
