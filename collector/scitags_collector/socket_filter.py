"""What the kernel copies of each packet for us: the head of most, all of those that may be fireflies.

Packets of BIG TCP have hundreds of kilobytes, of which an observer needs a hundred octets. Instructions: Linux,
Documentation/networking/filter.rst and filter.h.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from typing import Literal, NamedTuple

from scitags_collector import tunnels
from scitags_core import firefly

Direction = Literal["in", "out", "both"]

HEAD_OCTETS = 128

_SO_ATTACH_FILTER = 26
_LENGTH, _BYTE, _HALF, _IS, _IS_AT_LEAST, _KEEP = 0x80, 0x30, 0x28, 0x15, 0x35, 0x06
# What the kernel knows of the packet beside its octets.
_PROTOCOL, _PACKET_TYPE, _HARDWARE = 0xFFFFF000, 0xFFFFF004, 0xFFFFF01C
_IP = 0xFFF00000  # octets from here on are counted from the IP header, whatever stands before it
_OUTGOING = 4
_LOOPBACK = 772  # ARPHRD_LOOPBACK of if_arp.h


class _Step(NamedTuple):
    """An instruction, and where to go on after a test: at the next one, or at the step of that name."""

    code: int
    value: int = 0
    if_so: str = ""
    if_not: str = ""
    name: str = ""


_DIRECTIONS: dict[Direction, tuple[_Step, ...]] = {
    "both": (),
    "in": (_Step(_BYTE, _PACKET_TYPE), _Step(_IS, _OUTGOING, "none", "")),
    "out": (_Step(_BYTE, _PACKET_TYPE), _Step(_IS, _OUTGOING, "", "none")),
}
# A tunnel's inner headers may lie anywhere, and a firefly may be in one.
_WHOLE_PORTS = (
    *(_Step(_IS, port, "whole", "") for port in sorted(tunnels.PORTS)),
    _Step(_IS, firefly.PORT, "whole", "head"),
)
_SORT = (
    # Who reads behind the end of a packet loses it: what is too short for all that is read below is kept whole.
    _Step(_LENGTH),
    _Step(_IS_AT_LEAST, 64, "", "whole"),
    _Step(_HALF, _PROTOCOL),
    _Step(_IS, 0x0800, "IPv4", ""),
    _Step(_IS, 0x86DD, "", "whole"),
    _Step(_BYTE, _IP + 6),
    _Step(_IS, socket.IPPROTO_TCP, "head", ""),
    _Step(_IS, socket.IPPROTO_UDP, "", "whole"),
    _Step(_HALF, _IP + 42),
    *_WHOLE_PORTS,
    _Step(_BYTE, _IP, name="IPv4"),
    _Step(_IS, 0x45, "", "whole"),  # with options the ports are elsewhere
    _Step(_BYTE, _IP + 9),
    _Step(_IS, socket.IPPROTO_TCP, "head", ""),
    _Step(_IS, socket.IPPROTO_UDP, "", "whole"),
    _Step(_HALF, _IP + 22),
    *_WHOLE_PORTS,
)


# Of every interface at once: IP alone, as nothing tells what else begins with. The loopback interface receives all that
# it sends.
_OF_ANY = (
    _Step(_HALF, _HARDWARE),
    _Step(_IS, _LOOPBACK, "", "elsewhere"),
    _Step(_BYTE, _PACKET_TYPE),
    _Step(_IS, _OUTGOING, "none", ""),
    _Step(_HALF, _PROTOCOL, name="elsewhere"),
    _Step(_IS, 0x86DD, "IP", ""),
    _Step(_IS, 0x0800, "IP", "none"),
)
_DIRECTIONS_OF_ANY: dict[Direction, tuple[_Step, ...]] = {
    "both": (_Step(_LENGTH, name="IP"),),
    "in": (_Step(_BYTE, _PACKET_TYPE, name="IP"), _Step(_IS, _OUTGOING, "none", "")),
    "out": (_Step(_BYTE, _PACKET_TYPE, name="IP"), _Step(_IS, _OUTGOING, "", "none")),
}


def attach(capture: socket.socket, whole_octets: int, direction: Direction, *, of_any: bool = False) -> None:
    """Give a socket the filter; of packets that are kept whole it keeps so many octets at most. Raises OSError.

    of_any: it is a socket for every interface at once, whose packets begin with the IP header.
    """
    ends = (
        _Step(_KEEP, HEAD_OCTETS, name="head"),
        _Step(_KEEP, whole_octets, name="whole"),
        _Step(_KEEP, 0, name="none"),
    )
    before = (*_OF_ANY, *_DIRECTIONS_OF_ANY[direction]) if of_any else _DIRECTIONS[direction]
    program = _assemble((*before, *_SORT, *ends))
    kept = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("HL", len(program) // 8, ctypes.addressof(kept))
    capture.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, description)


def _assemble(steps: Iterable[_Step]) -> bytes:
    steps = tuple(steps)
    places = {step.name: number for number, step in enumerate(steps) if step.name}

    def distance(name: str, number: int) -> int:
        return places[name] - number - 1 if name else 0

    return b"".join(
        struct.pack("HBBI", step.code, distance(step.if_so, number), distance(step.if_not, number), step.value)
        for number, step in enumerate(steps)
    )
