"""The kernel's ring of captured packets, which it writes and we read without a call for each packet.

Constants and layouts: Linux, Documentation/networking/packet_mmap.rst (TPACKET_V3) and if_packet.h.
"""

from __future__ import annotations

import mmap
import socket
import struct
from collections.abc import Iterator

from scitags_collector.link import Frame, Link

BLOCK_OCTETS = 1 << 20
RETIRE_MILLISECONDS = 50  # so long the kernel waits for a block to fill

SOL_PACKET = 263
_RX_RING, _STATISTICS, _VERSION = 5, 6, 10
_TPACKET_V3 = 2
_FRAME_OCTETS = 2048  # of no meaning in this version, but checked
_STATUS_AT = 8
_OURS = 1
_BLOCK_HEADER = struct.Struct("8xIII")  # status, number of packets, offset of the first
_PACKET_HEADER = struct.Struct("IIIII4xHH")  # next, s, ns, captured, length, (status), offsets of link and IP header


class Ring:
    """The ring of a packet socket that is not bound yet. Raises OSError."""

    def __init__(self, capture: socket.socket, octets: int) -> None:
        """It is made smaller where the kernel has no such memory to give."""
        capture.setsockopt(SOL_PACKET, _VERSION, _TPACKET_V3)
        blocks = max(2, octets // BLOCK_OCTETS)
        while True:
            frames = blocks * (BLOCK_OCTETS // _FRAME_OCTETS)
            request = struct.pack("7I", BLOCK_OCTETS, blocks, _FRAME_OCTETS, frames, RETIRE_MILLISECONDS, 0, 0)
            try:
                capture.setsockopt(SOL_PACKET, _RX_RING, request)
                break
            except OSError:
                if blocks <= 2:  # noqa: PLR2004
                    raise
                blocks //= 2
        self._memory = mmap.mmap(capture.fileno(), blocks * BLOCK_OCTETS)
        self._blocks = blocks
        self._socket = capture
        self._next = 0
        self._dropped = 0

    def close(self) -> None:
        self._memory.close()

    def is_ready(self) -> bool:
        """Whether the next block is ours to read. To be asked after a system call, not in a loop without one."""
        return bool(_BLOCK_HEADER.unpack_from(self._memory, self._next * BLOCK_OCTETS)[0] & _OURS)

    def frames(self, link: Link) -> Iterator[Frame]:
        """Those of the next block, which then is the kernel's again."""
        memory = self._memory
        unpack = _PACKET_HEADER.unpack_from
        block = self._next * BLOCK_OCTETS
        _, count, offset = _BLOCK_HEADER.unpack_from(memory, block)
        at = block + offset
        for _ in range(count):
            following, seconds, nanoseconds, captured, length, start, _ = unpack(memory, at)
            yield seconds * 1_000_000_000 + nanoseconds, link, memory, at + start, captured, length
            at += following
        struct.pack_into("I", memory, block + _STATUS_AT, 0)
        self._next = (self._next + 1) % self._blocks

    def dropped(self) -> int:
        """Packets that found no place, since the beginning."""
        statistics = self._socket.getsockopt(SOL_PACKET, _STATISTICS, 12)
        self._dropped += struct.unpack("III", statistics)[1]  # reading it sets it to 0
        return self._dropped
