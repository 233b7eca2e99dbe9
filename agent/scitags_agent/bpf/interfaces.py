"""The network interfaces of this process's network namespace."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Sequence
from fnmatch import fnmatchcase

import msgspec

SIOCGIFHWADDR = 0x8927
_IFREQ = struct.Struct("16sH22x")

# ARPHRD types (linux/if_arp.h).
ETHERNET = 1
LOOPBACK = 772
_WITH_ETHERNET_HEADER = frozenset({ETHERNET, LOOPBACK})
# PPP, raw IP, IP-in-IP tunnels, SIT, GRE, GRE over IPv6, and "none" (tun, wireguard).
_WITHOUT_HEADER = frozenset({512, 519, 768, 769, 776, 778, 823, 0xFFFE})


class Interface(msgspec.Struct, frozen=True):
    """An interface by index and name; ethernet tells whether its packets have an Ethernet header."""

    index: int
    name: str
    ethernet: bool


def matching(patterns: Sequence[str]) -> list[Interface]:
    """The interfaces whose names match one of the patterns (as in a shell).

    A loopback is matched only by its very name, and an interface of another link layer never.
    """
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as query:
        for index, name in socket.if_nameindex():
            kind = _hardware_type(query, name)
            wanted = name in patterns or (kind != LOOPBACK and any(fnmatchcase(name, pattern) for pattern in patterns))
            if wanted and kind in _WITH_ETHERNET_HEADER | _WITHOUT_HEADER:
                found.append(Interface(index, name, kind in _WITH_ETHERNET_HEADER))
    return found


def _hardware_type(query: socket.socket, name: str) -> int:
    """The ARPHRD type; 0 for an interface that went away meanwhile."""
    try:
        answer = fcntl.ioctl(query, SIOCGIFHWADDR, _IFREQ.pack(name.encode(), 0))
    except OSError:
        return 0
    return int(_IFREQ.unpack(answer)[1])
