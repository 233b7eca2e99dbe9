"""The tag in an IPv6 Destination Options or Hop-by-Hop header of 8 octets.

    octet 0       next header
    octet 1       0, the header's length in 8-octet units beyond the first
    octets 2, 3   option 0x1E (RFC 4727, experimental: skip when unknown, does not change), length 3
    octets 4..6   experiment << 8 | activity, network order
    octet 7       Pad1

There is no IETF text for this use; it is the running convention of the daemons in the field. Option
and padding rules are those of RFC 8200, section 4.2.
"""

from __future__ import annotations

from typing import NamedTuple

from scitags_core.errors import TagError
from scitags_core.tag import ACTIVITY_MAX, EXPERIMENT_MAX, Tag, check_id

HEADER_OCTETS = 8
OPTION_TYPE = 0x1E
OPTION_OCTETS = 3
_PAD1 = 0


class TaggedHeader(NamedTuple):
    """A header that bears a tag, and the protocol number (0..255) of what follows it."""

    tag: Tag
    next_header: int


def encode(experiment: int, activity: int, next_header: int) -> bytes:
    """The 8 octets for an experiment 1..1023, an activity 0..63 and a next header 0..255."""
    check_id("experiment id", experiment, 1, EXPERIMENT_MAX)
    check_id("activity id", activity, 0, ACTIVITY_MAX)
    check_id("next header", next_header, 0, 255)
    value = (experiment << 8 | activity).to_bytes(3, "big")
    return bytes((next_header, 0, OPTION_TYPE, OPTION_OCTETS)) + value + bytes((_PAD1,))


def decode(header: bytes) -> TaggedHeader:
    """The tag in a whole options header, of any length, that may hold other options too.

    Raises TagError when the header is cut short, is malformed, or bears no tag.
    """
    if len(header) < HEADER_OCTETS or len(header) != (header[1] + 1) * HEADER_OCTETS:
        raise TagError(f"options header {header[:16].hex()} of {len(header)} octets is cut short or too long")
    at, end = 2, len(header)
    while at < end:
        kind = header[at]
        if kind == _PAD1:
            at += 1
            continue
        if at + 2 > end or at + 2 + header[at + 1] > end:
            raise TagError(f"option at octet {at} of {header[:16].hex()} runs past the end of its header")
        if kind == OPTION_TYPE and header[at + 1] == OPTION_OCTETS:
            return TaggedHeader(_tag(header[at + 2 : at + 5]), header[0])
        at += 2 + header[at + 1]
    raise TagError(f"options header {header[:16].hex()} bears no tag")


def _tag(value: bytes) -> Tag:
    number = int.from_bytes(value, "big")
    experiment, activity = number >> 8, number & 0xFF
    if not 1 <= experiment <= EXPERIMENT_MAX:
        raise TagError(f"option {value.hex()} names experiment {experiment}, outside 1..{EXPERIMENT_MAX}")
    if activity > ACTIVITY_MAX:
        raise TagError(f"option {value.hex()} names activity {activity}, outside 0..{ACTIVITY_MAX}")
    return Tag(experiment, activity)
