"""Capture files of the second format, pcapng: sections, each with interfaces of its own, in blocks.

Format: draft-ietf-opsawg-pcapng. Blocks that are not needed (names, decryption secrets, comments) are stepped over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from scitags_collector.link import OF_FILES, Frame, Link
from scitags_collector.pcap import NANOSECONDS, DamagedFile, Source

SECTION_START = b"\x0a\x0d\x0d\x0a"
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 2, 3, 5, 6
_BYTE_ORDERS = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}
_BLOCK_START, _BLOCK_LEAST = 8, 12  # type and length; and the length again at the end
_RESOLUTION, _OFFSET, _DROPS = 9, 14, (5, 7)  # options: of an interface; of its statistics
_MOST_DIGITS = 63
_PACKET_AT, _SIMPLE_AT = 28, 12  # where the frame begins in its block


class _Interface(msgspec.Struct):
    """One that was captured from. Its times count units of multiplier / divisor nanoseconds.

    limit    octets of a frame that were captured at most; 0 for all of them
    """

    link_type: int
    limit: int
    multiplier: int = 1000
    divisor: int = 1
    offset: int = 0

    @property
    def link(self) -> Link | None:
        return OF_FILES.get(self.link_type)


class _Section:
    """What the blocks after a section's header mean."""

    def __init__(self, source: Source, number: int, order: str) -> None:
        self._source = source
        self._number = number
        self.unpack_start = struct.Struct(f"{order}II").unpack_from
        self._unpack_packet = struct.Struct(f"{order}IIIII").unpack_from
        self._unpack_old_packet = struct.Struct(f"{order}HHIIII").unpack_from
        self._order = order
        self._interfaces: list[_Interface] = []

    def frame(self, kind: int, block: bytes) -> Frame | None:
        """The frame in a block; None when there is none, or none that is known. The rest is remembered."""
        try:
            if kind == _PACKET:
                which, high, low, captured, wire = self._unpack_packet(block, 8)
                return self._frame(which, high << 32 | low, block, captured, wire)
            if kind == _OLD_PACKET:
                which, _, high, low, captured, wire = self._unpack_old_packet(block, 8)
                return self._frame(which, high << 32 | low, block, captured, wire)
            if kind == _SIMPLE_PACKET:
                wire = self._word(block, 8)
                limit = self._interfaces[0].limit or wire
                return self._frame(0, 0, block, min(wire, limit), wire, at=_SIMPLE_AT)
            if kind == _INTERFACE:
                self._interfaces.append(self._interface(block))
            elif kind == _STATISTICS:
                self._add_losses(block)
        except (struct.error, IndexError):
            raise DamagedFile(f"{self._source.name} is damaged: a block of type {kind} in it makes no sense") from None
        return None

    def _frame(
        self, which: int, units: int, block: bytes, captured: int, wire: int, *, at: int = _PACKET_AT
    ) -> Frame | None:
        interface = self._interfaces[which]
        link = interface.link
        if link is None:
            self._source.left_out[interface.link_type] += 1
            return None
        if at + captured > len(block) - 4:
            raise IndexError
        return units * interface.multiplier // interface.divisor + interface.offset, link, block, at, captured, wire

    def _interface(self, block: bytes) -> _Interface:
        link_type, _, limit = struct.unpack_from(f"{self._order}HHI", block, 8)
        found = _Interface(link_type, limit)
        for code, value in self._options(block, 16):
            if code == _RESOLUTION and value:
                digits = value[0] & 0x7F
                if digits > _MOST_DIGITS:
                    raise IndexError
                found.multiplier, found.divisor = NANOSECONDS, (2 if value[0] & 0x80 else 10) ** digits
            elif code == _OFFSET:
                found.offset = struct.unpack(f"{self._order}q", value)[0] * NANOSECONDS
        return found

    def _add_losses(self, block: bytes) -> None:
        """Statistics count from the beginning, so the last ones hold."""
        lost = [
            struct.unpack(f"{self._order}Q", value)[0] for code, value in self._options(block, 20) if code in _DROPS
        ]
        self._source.losses[self._number, self._word(block, 8)] = sum(lost)

    def _options(self, block: bytes, at: int) -> Iterator[tuple[int, bytes]]:
        while at + 4 <= len(block) - 4:
            code, length = struct.unpack_from(f"{self._order}HH", block, at)
            if code == 0:
                break
            yield code, block[at + 4 : at + 4 + length]
            at += 4 + (length + 3 & ~3)

    def _word(self, block: bytes, at: int) -> int:
        word: int = struct.unpack_from(f"{self._order}I", block, at)[0]
        return word


def frames(source: Source) -> Iterator[Frame]:
    """The frames of a pcapng file. Raises DamagedFile, after what comes before the damage."""
    buffer, at, number = b"", 0, 0
    section: _Section | None = None
    while True:
        if len(buffer) - at < _BLOCK_LEAST:
            buffer, at = source.more(buffer, at, _BLOCK_LEAST), 0
            if len(buffer) < _BLOCK_LEAST:
                break
        if buffer[at : at + 4] == SECTION_START:
            order = _BYTE_ORDERS.get(buffer[at + 8 : at + 12])
            if order is None:
                raise DamagedFile(
                    f"{source.name} is no capture file: its byte order is {buffer[at + 8 : at + 12].hex()}"
                )
            section, number = _Section(source, number, order), number + 1
        assert section is not None  # the first block begins one, or this is no such file
        kind, length = section.unpack_start(buffer, at)
        if length < _BLOCK_LEAST or length % 4:
            raise DamagedFile(f"{source.name} is damaged: it has a block of {length} octets")
        if at + length > len(buffer):
            buffer, at = source.more(buffer, at, length), 0
            if len(buffer) < length:
                break
        frame = section.frame(kind, buffer[at : at + length])
        if frame is not None:
            yield frame
        at += length
    source.check_whole(buffer)
