"""Link types: what stands in front of the IP packet in a captured frame.

Numbers and headers: tcpdump.org/linktypes. Those of interfaces are Linux's (if_arp.h).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import msgspec

from scitags_collector import tunnels
from scitags_collector.packet import IPV6_OCTETS, PORTS_OCTETS, TCP, UDP, Packet, parse_ethernet, parse_ip, parse_typed
from scitags_core import firefly

_IP_HEAD = IPV6_OCTETS + PORTS_OCTETS
_FIREFLY_PORT = firefly.PORT.to_bytes(2, "big")
_IPV6 = b"\x86\xdd"

# Time of capture (nanoseconds since 1970), link type, then where the frame is: a buffer, an offset in it, how many
# octets were captured, and how many there were on the wire. A tuple, for there is one for each packet.
Frame = tuple[int, "Link", "bytes | mmap.mmap", int, int, int]


class Link(msgspec.Struct, frozen=True, eq=False):
    """A link type.

    parse     makes a packet of a frame and its length on the wire, or None
    head      octets of a frame until the end of the ports, where neither VLAN tag nor extension header is in between
    type_at   where the Ethernet type is among them; None when the link header has none
    """

    parse: Callable[[bytes, int], Packet | None]
    head: int
    type_at: int | None = None

    def is_told_by(self, head: bytes) -> bool:
        """Whether any frame that begins with these octets, of which one was parsed, is the same to an observer.

        It is where they hold all that the parser looks at: IPv6, TCP or UDP right behind it, a length, and neither
        a firefly nor a tunnel. Most packets of a network that tags are of this kind, and few differ here.
        """
        ip = self.head - _IP_HEAD
        return (
            (self.type_at is None or head[self.type_at : self.type_at + 2] == _IPV6)
            and head[ip] >> 4 == 6  # noqa: PLR2004
            and head[ip + 6] in (TCP, UDP)
            and head[ip + 4 : ip + 6] != b"\0\0"
            and head[-2:] != _FIREFLY_PORT
            and (head[ip + 6] == TCP or head[-2:] not in tunnels.PORT_OCTETS)
        )


def _behind(octets: int, type_at: int | None) -> Link:
    parse = partial(parse_ip, at=octets) if type_at is None else partial(parse_typed, type_at=type_at, at=octets)
    return Link(parse, octets + _IP_HEAD, type_at)


ETHERNET = Link(parse_ethernet, 14 + _IP_HEAD, 12)
RAW = Link(parse_ip, _IP_HEAD)
_NULL = _behind(4, None)  # the address family, in the byte order of whoever captured: the IP version tells as much
OF_FILES = {0: _NULL, 1: ETHERNET, 108: _NULL, 113: _behind(16, 14), 276: _behind(20, 0)} | dict.fromkeys(
    (12, 14, 101, 228, 229), RAW
)
ETHERNET_INTERFACES = (1, 772)  # and the loopback interface, whose frames look the same


def packets_of(frames: Iterable[Frame]) -> Iterator[tuple[int, Packet]]:
    """The IP packets among frames, with their times."""
    for time_ns, link, buffer, at, captured, wire in frames:
        packet = link.parse(buffer[at : at + captured], wire)
        if packet is not None:
            yield time_ns, packet
