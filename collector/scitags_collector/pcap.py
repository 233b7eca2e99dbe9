"""Capture files of the first format, pcap, and how any capture file is read: piece by piece, also out of a pipe.

Format: draft-ietf-opsawg-pcap. It is read here, and not by a library, because the length that a packet had on the
wire and its nanoseconds are needed, at the pace of a large capture.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from scitags_collector.link import OF_FILES, Frame
from scitags_core.errors import PeerDataError

CHUNK_OCTETS = 1 << 20
# BIG TCP has frames of 512 KB at most; what claims to be far longer is none.
MAX_BLOCK_OCTETS = 1 << 24
NANOSECONDS = 1_000_000_000

_SUBSECOND_NANOSECONDS = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}  # by the file's magic
_HEADER_OCTETS, _RECORD_OCTETS = 24, 16
_LINK_TYPE_AT, _LINK_TYPE_BITS = 20, 0x0FFFFFFF  # the bits above say whether frames end with a check sequence


class DamagedFile(PeerDataError):
    """A capture file that is none, or that cannot be read on."""


class Readable(Protocol):
    """A file or pipe, opened for reading octets."""

    def read1(self, size: int, /) -> bytes:
        """What is there, at most so many octets; none at the end."""


class Source:
    """A capture file and its name, and what is learnt beside its frames.

    losses      frames that the capturing host says it lost, by interface
    left_out    frames of link types that are not known here, by type
    """

    def __init__(self, file: Readable, name: str) -> None:
        self._file = file
        self._peeked = b""
        self.name = name
        self.losses: dict[tuple[int, int], int] = {}
        self.left_out: Counter[int] = Counter()

    def peek(self, octets: int) -> bytes:
        """The first octets of the file, which are still to be read after this."""
        self._peeked = self.more(b"", 0, octets)
        return self._peeked[:octets]

    def more(self, buffer: bytes, at: int, wanted: int) -> bytes:
        """The buffer from an offset on, with at least so many octets where the file still has them."""
        if wanted > MAX_BLOCK_OCTETS:
            raise DamagedFile(f"{self.name} is damaged: something in it claims to be of {wanted} octets")
        parts = [buffer[at:], self._peeked]
        self._peeked = b""
        missing = wanted - len(parts[0]) - len(parts[1])
        while missing > 0:
            read = self._file.read1(CHUNK_OCTETS)
            if not read:
                break
            parts.append(read)
            missing -= len(read)
        return b"".join(parts)

    def check_whole(self, rest: bytes) -> None:
        """What is left at the end of the file: nothing, or DamagedFile is raised."""
        if rest:
            raise DamagedFile(f"{self.name} is cut short: what was last written is not whole")


def frames(source: Source) -> Iterator[Frame]:
    """The frames of a pcap file. Raises DamagedFile, after what comes before the damage."""
    buffer = source.more(b"", 0, _HEADER_OCTETS)
    order, nanoseconds = _read_magic(source, buffer)
    link_type = struct.unpack_from(f"{order}I", buffer, _LINK_TYPE_AT)[0] & _LINK_TYPE_BITS
    link = OF_FILES.get(link_type)
    if link is None:
        raise DamagedFile(f"{source.name}: link type {link_type} is not known")
    unpack = struct.Struct(f"{order}IIII").unpack_from
    at = _HEADER_OCTETS
    while True:
        if len(buffer) - at < _RECORD_OCTETS:
            buffer, at = source.more(buffer, at, _RECORD_OCTETS), 0
            if len(buffer) < _RECORD_OCTETS:
                break
        seconds, fraction, captured, wire = unpack(buffer, at)
        start = at + _RECORD_OCTETS
        if start + captured > len(buffer):
            buffer, at, start = source.more(buffer, at, _RECORD_OCTETS + captured), 0, _RECORD_OCTETS
            if len(buffer) < start + captured:
                break
        yield seconds * NANOSECONDS + fraction * nanoseconds, link, buffer, start, captured, wire
        at = start + captured
    source.check_whole(buffer)


def _read_magic(source: Source, header: bytes) -> tuple[str, int]:
    """The byte order, and the nanoseconds in a unit of the time's second part."""
    if len(header) >= _HEADER_OCTETS:
        for order in "<>":
            nanoseconds = _SUBSECOND_NANOSECONDS.get(struct.unpack_from(f"{order}I", header)[0])
            if nanoseconds is not None:
                return order, nanoseconds
    raise DamagedFile(f"{source.name} is no capture file")
