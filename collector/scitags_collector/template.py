"""Templates of NetFlow v9 and IPFIX: where in a record its fields are.

Formats: RFC 3954 (NetFlow v9), RFC 7011 (IPFIX), RFC 5103 (the other direction in the same record).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from scitags_collector.exported import Malformed

VARIABLE = 0xFFFF
REVERSE = 29305  # the enterprise number of RFC 5103
FIELDS_MAX = 4096
_FIELD = struct.Struct("!HH")
_ENTERPRISE = 0x8000

# Number of the enterprise (0: IANA's own) and of the information element.
Element = tuple[int, int]
Record = tuple[bytes, ...]


class Template(msgspec.Struct, frozen=True):
    """The fields of a record, in order.

    elements    what they are
    lengths     octets of each; VARIABLE where the record itself says
    scopes      how many of them at the beginning tell what the others are about; 0 for flow records
    """

    elements: tuple[Element, ...]
    lengths: tuple[int, ...]
    scopes: int = 0

    def records(self, data: bytes) -> Iterator[Record]:
        """The fields of each record of a data set; what is behind the last whole one is padding."""
        if VARIABLE not in self.lengths:
            layout = struct.Struct("!" + "".join(f"{length}s" for length in self.lengths))
            yield from layout.iter_unpack(data[: len(data) - len(data) % layout.size])
            return
        at = 0
        while (found := self._variable(data, at)) is not None:
            record, at = found
            yield record

    def _variable(self, data: bytes, at: int) -> tuple[Record, int] | None:
        fields = []
        for told in self.lengths:
            length = told
            if length == VARIABLE:
                if at >= len(data):
                    return None
                length, at = data[at], at + 1
                if length == 0xFF:  # noqa: PLR2004  (RFC 7011, section 7: the long form)
                    length, at = int.from_bytes(data[at : at + 2], "big"), at + 2
            if at + length > len(data):
                return None
            fields.append(data[at : at + length])
            at += length
        return tuple(fields), at


def read_fields(data: bytes, at: int, count: int, *, scopes: int, has_enterprises: bool) -> tuple[Template, int]:
    """A template of so many fields, and where it ends. Raises Malformed."""
    if not 0 < count <= FIELDS_MAX:
        raise Malformed(f"a template of {count} fields")
    elements: list[Element] = []
    lengths: list[int] = []
    for _ in range(count):
        enterprise = 0
        try:
            number, length = _FIELD.unpack_from(data, at)
            at += _FIELD.size
            if has_enterprises and number & _ENTERPRISE:
                enterprise, number = int.from_bytes(data[at : at + 4], "big"), number & ~_ENTERPRISE
                at += 4
        except struct.error:
            raise Malformed("a template is cut short") from None
        elements.append((enterprise, number))
        lengths.append(length)
    if at > len(data):
        raise Malformed("a template is cut short")
    if not any(lengths):
        raise Malformed("a template whose records have no octets")
    return Template(tuple(elements), tuple(lengths), scopes), at
