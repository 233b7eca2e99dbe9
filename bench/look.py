"""A short look at the packets that arrive: whether they bear the marks that they should."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Sequence

import msgspec

from bench.ways import Kind, Stream
from scitags_core import exthdr
from scitags_core.errors import TagError
from scitags_core.tag import Tag
from tests.netns.namespaces import Namespace

ETH_P_IPV6 = 0x86DD
IPV6_OCTETS = 40
SNAP_OCTETS = 256
_WORDS = struct.Struct("!IHB")


class Marks(msgspec.Struct, frozen=True):
    """Packets with data that were looked at, and those of them that bore their stream's own tag."""

    packets: int
    right: int

    @property
    def share(self) -> float:
        """Of those with the right mark, 0 to 1."""
        return self.right / self.packets if self.packets else 0.0


class Look:
    """At an interface, from now on. Packets that were joined on their way (GRO) or never cut count as one."""

    def __init__(self, host: Namespace, interface: str) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.bind((interface, ETH_P_IPV6))

    def close(self) -> None:
        self._socket.close()

    def at(self, streams: Sequence[Stream], kind: Kind, *, seconds: float, most: int = 2000) -> Marks:
        """So long, or so many packets; kind is what they should bear: of unmarked ones, right are those without."""
        expected = {(one.key.src_port, one.key.dst_port): one for one in streams}
        packets = right = 0
        deadline = time.monotonic() + seconds
        while packets < most and (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                found = _read(self._socket.recv(SNAP_OCTETS))
            except TimeoutError:
                break
            if found is not None and found[0] in expected:
                ports, flow_label, header = found
                packets += 1
                right += _is_right(kind, expected[ports], flow_label, header)
        return Marks(packets, right)


def _is_right(kind: Kind, stream: Stream, flow_label: int, header: Tag | None) -> bool:
    if kind == "header":
        return header == stream.tag
    return header is None and (flow_label == stream.label) is (kind == "label")


def _read(packet: bytes) -> tuple[tuple[int, int], int, Tag | None] | None:
    """Ports, flow label, and the tag of a Destination Options header; None for what is not TCP with data."""
    word, payload, kind = _WORDS.unpack_from(packet)
    at, header = IPV6_OCTETS, None
    if kind == socket.IPPROTO_DSTOPTS:
        kind = packet[at]
        with contextlib.suppress(TagError):
            header = exthdr.decode(packet[at : at + exthdr.HEADER_OCTETS]).tag
        at += 8 * (packet[at + 1] + 1)
    if kind != socket.IPPROTO_TCP or len(packet) < at + 20:
        return None
    ports = int.from_bytes(packet[at : at + 2], "big"), int.from_bytes(packet[at + 2 : at + 4], "big")
    data = IPV6_OCTETS + payload - at - 4 * (packet[at + 12] >> 4)
    return (ports, word & 0xFFFFF, header) if data > 0 else None
