"""The syslog header (RFC 5424) in front of a firefly, and what becomes of it on the way.

    <134>1 TIMESTAMP HOST APP PROCID MSGID SD {...}         134 = local0.info

Read as well: a timestamp of '-' or left empty, a line that rsyslog rewrote (its own old-style stamp and
host in front, the <134> gone), and no header at all.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

import msgspec

from scitags_core.errors import InvalidValue
from scitags_core.instant import format_instant, parse_instant

PRIORITY = 134
VERSION = "1"
MESSAGE_ID = "firefly-json"
NIL = "-"
_HOST_OCTETS = 255  # RFC 5424, section 6
_APP_OCTETS = 48
_PRINTABLE = range(33, 127)


class SyslogHeader(msgspec.Struct, frozen=True):
    """What a header says; an empty string or None where it says nothing."""

    timestamp: datetime | None
    host: str
    app: str


@lru_cache(maxsize=64)  # fireflies that leave together have the same
def format_header(timestamp: datetime, host: str, app: str) -> str:
    """The header of a firefly, without the blank that follows it."""
    return (
        f"<{PRIORITY}>{VERSION} {format_instant(timestamp)} {header_field(host, _HOST_OCTETS)} "
        f"{header_field(app, _APP_OCTETS)} {NIL} {MESSAGE_ID} {NIL}"
    )


@lru_cache(maxsize=64)  # a sender has one host and one name
def header_field(text: str, limit: int) -> str:
    """The text as RFC 5424 allows it in a header: printable ASCII without blanks, '-' when empty.

    Without braces, too: readers look for the first one to find the JSON object.
    """
    return "".join(c if ord(c) in _PRINTABLE and c != "{" else "_" for c in text)[:limit] or NIL


def parse_header(prefix: bytes) -> SyslogHeader | None:
    """What stood in front of the JSON object; None when that is no header of a firefly.

    Never raises: the header is hearsay, the object beside it is what counts.
    """
    # Blanks are single: two of them are how an empty timestamp looks.
    fields = prefix.decode("ascii", "replace").split(" ")
    try:
        at = fields.index(MESSAGE_ID)
    except ValueError:
        return None
    if at < 4:  # noqa: PLR2004  (timestamp, host, app and procid stand before it)
        return None
    stamp, host, app = fields[at - 4 : at - 1]
    return SyslogHeader(_stamp(stamp), "" if host == NIL else host, "" if app == NIL else app)


def behind_old_header(message: bytes) -> bytes:
    """What stands behind the header of old-style syslog (RFC 3164: <190>Nov 24 18:54:27 tag: ...), if there is one.

    nginx writes such a header in front of whatever it logs to a socket.
    """
    return message.partition(b": ")[2] if message.startswith(b"<") else message


def _stamp(text: str) -> datetime | None:
    if text in ("", NIL):
        return None
    try:
        return parse_instant(text)
    except InvalidValue:
        return None
