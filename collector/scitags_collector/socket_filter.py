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

from scitags_core import firefly

Direction = Literal["in", "out", "both"]

HEAD_OCTETS = 128

_SO_ATTACH_FILTER = 26
_LENGTH, _BYTE, _HALF, _IS, _IS_AT_LEAST, _KEEP = 0x80, 0x30, 0x28, 0x15, 0x35, 0x06
_PROTOCOL, _PACKET_TYPE = 0xFFFFF000, 0xFFFFF004  # what the kernel knows of the packet beside its octets
_IP = 0xFFF00000  # octets from here on are counted from the IP header, whatever stands before it
_OUTGOING = 4


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
    _Step(_IS, firefly.PORT, "whole", "head"),
    _Step(_BYTE, _IP, name="IPv4"),
    _Step(_IS, 0x45, "", "whole"),  # with options the ports are elsewhere
    _Step(_BYTE, _IP + 9),
    _Step(_IS, socket.IPPROTO_TCP, "head", ""),
    _Step(_IS, socket.IPPROTO_UDP, "", "whole"),
    _Step(_HALF, _IP + 22),
    _Step(_IS, firefly.PORT, "whole", "head"),
)


def attach(capture: socket.socket, whole_octets: int, direction: Direction) -> None:
    """Give a socket the filter; of packets that are kept whole it keeps so many octets at most. Raises OSError."""
    ends = (
        _Step(_KEEP, HEAD_OCTETS, name="head"),
        _Step(_KEEP, whole_octets, name="whole"),
        _Step(_KEEP, 0, name="none"),
    )
    program = _assemble((*_DIRECTIONS[direction], *_SORT, *ends))
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
