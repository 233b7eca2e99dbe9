"""Hears of packets that were too long for their path (ICMPv6, RFC 4443), of this network namespace.

The kernel's TCP acts on such a message only when its own segments are too long. Where a header was put in after it, a
path that is narrower by less than the header would be heard of by nobody, and full packets be lost for good.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from scitags_core.exthdr import OPTION_OCTETS, OPTION_TYPE
from scitags_core.flow import FlowKey, Transport

_ICMPV6_FILTER = 1  # linux/icmpv6.h
_PACKET_TOO_BIG = 2
_HEAD = struct.Struct("!BBHI")  # type, code, checksum, MTU
_FIXED = 40
_OPTIONS = frozenset({0, 43, 60})
_TRANSPORTS: dict[int, Transport] = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
_OUR_OPTION = bytes((OPTION_TYPE, OPTION_OCTETS))
_MOST_HEADERS = 8
_RECEIVE_OCTETS = 2048  # such a message is at most 1280 long


class TooBigMessages:
    """A raw socket that takes no other message."""

    def __init__(self) -> None:
        """Raises PermissionError without CAP_NET_RAW, OSError without IPv6."""
        self._socket = socket.socket(
            socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6
        )
        blocked = bytearray(b"\xff" * 32)
        struct.pack_into("=I", blocked, 0, 0xFFFFFFFF & ~(1 << _PACKET_TOO_BIG))
        self._socket.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, bytes(blocked))

    def fileno(self) -> int:
        """For an event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def heard(self) -> Iterator[tuple[FlowKey, int]]:
        """The flow of each packet that was too long, and how long it may be."""
        while True:
            try:
                message = self._socket.recv(_RECEIVE_OCTETS)
            except BlockingIOError:
                return
            except OSError:
                continue  # an error that was waiting, of nothing that we have sent
            found = parse(message)
            if found is not None:
                yield found


def parse(message: bytes) -> tuple[FlowKey, int] | None:
    """Of an ICMPv6 message: the flow and the MTU. None for another message, and for a packet without a header of ours.

    The kernel itself sees to the latter; it also sends such messages to itself when its own packets become too long.
    """
    if len(message) < _HEAD.size + _FIXED:
        return None
    kind, _, _, mtu = _HEAD.unpack_from(message)
    packet = message[_HEAD.size :]
    if kind != _PACKET_TOO_BIG or packet[0] >> 4 != 6:  # noqa: PLR2004
        return None
    protocol, at = packet[6], _FIXED
    is_ours = False
    for _ in range(_MOST_HEADERS):
        if protocol not in _OPTIONS or at + 4 > len(packet):
            break
        is_ours |= packet[at + 2 : at + 4] == _OUR_OPTION
        protocol, at = packet[at], at + 8 * (packet[at + 1] + 1)
    if not is_ours or protocol not in _TRANSPORTS or at + 4 > len(packet):
        return None
    source, destination = (socket.inet_ntop(socket.AF_INET6, packet[start : start + 16]) for start in (8, 24))
    source_port, destination_port = struct.unpack_from("!HH", packet, at)
    return FlowKey.of(source, source_port, destination, destination_port, _TRANSPORTS[protocol]), mtu
