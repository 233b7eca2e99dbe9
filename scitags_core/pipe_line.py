"""The line of the named pipe, which storages and shell scripts have written to flowd for years.

    STATE PROTO SRC SPORT DST DPORT EXPERIMENT ACTIVITY\\n       start tcp 2001:db8::1 8085 2001:db8::2 43720 2 15

Fields are split on any white space; STATE is start or end, PROTO tcp or udp, both in any case. StoRM WebDAV
writes IPv6 addresses in square brackets and not shortened, and 0 0 for a tag that it could not use. Its recipe for
nginx writes ends with ACTIVITY and EXPERIMENT the other way round: where the numbers show it, they are put right here;
where they do not, the table of flows does it, which knows the start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache

from scitags_core.errors import FlowEventError, shown
from scitags_core.flow import (
    NO_EXTRA,
    PORT_MAX,
    FlowEvent,
    FlowKey,
    FlowState,
    Transport,
    check_tag,
    zone_of,
)
from scitags_core.tag import ACTIVITY_MAX, Tag

FIELDS = 8
_STARTS_REMEMBERED = 1 << 14
_OCTETS_REMEMBERED = 200  # of one; addresses are shorter, whatever else may stand between them
_START, _END = FlowState.START, FlowState.END
_STATES = {b"start": _START, b"end": _END}
_BEGINNING = re.compile(rb"(?:start|end)[ \t]+(?:tcp|udp)[ \t]", re.IGNORECASE)


def parse_line(line: bytes, now: datetime | None = None) -> FlowEvent:
    """The event in a line, with or without its newline. FlowEventError names what is wrong.

    now is taken for the start time of a start, which the line does not tell.
    """
    fields = line.split()
    if len(fields) != FIELDS:
        raise FlowEventError(f"{shown(line)} has {len(fields)} fields, not {FIELDS}")
    word, protocol, src, src_port, dst, dst_port, experiment, activity = fields
    try:
        # int() takes a sign, and underscores, too.
        if not (src_port + dst_port).isdigit():
            raise FlowEventError(f"{shown(line)}: a port is not a number")
        from_port, to_port = int(src_port), int(dst_port)
        if from_port > PORT_MAX or to_port > PORT_MAX:
            raise FlowEventError(f"port {shown(max(from_port, to_port))} is outside 0..{PORT_MAX}")
        state, transport, source, destination, zone, tag = _all_but_ports(
            word, protocol, src, dst, experiment, activity
        )
    except UnicodeDecodeError:
        raise FlowEventError(f"{shown(line)} is not ASCII") from None
    except ValueError as error:  # an integer of thousands of digits
        raise FlowEventError(f"{error} in {shown(line)}") from None
    key = FlowKey(source, from_port, destination, to_port, transport)
    return FlowEvent(state, key, tag, now if state is _START else None, None, None, "", None, "", zone, NO_EXTRA)


class LineReader:
    """Reads lines by the thousand. What stands behind the word in a start is remembered, as its end repeats it."""

    def __init__(self) -> None:
        self._begun: dict[bytes, FlowEvent] = {}

    def read(
        self, lines: Iterable[bytes], now: datetime, mend: Callable[[bytes, FlowEventError], Iterable[FlowEvent]]
    ) -> list[FlowEvent]:
        """What parse_line() makes of each line without its newline, in order.

        Of a line that is no event, mend() is told the reason, and says what comes in its place.
        """
        events: list[FlowEvent] = []
        begun = self._begun
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"end":
                start = begun.pop(rest, None)
                if start is not None:
                    events.append(
                        FlowEvent(_END, start.key, start.tag, None, None, None, "", None, "", start.zone, NO_EXTRA)
                    )
                    continue
            try:
                event = parse_line(line, now)
            except FlowEventError as error:
                events += mend(line, error)
                continue
            events.append(event)
            if word == b"start" and len(rest) <= _OCTETS_REMEMBERED:
                if len(begun) >= _STARTS_REMEMBERED:
                    begun.clear()
                begun[rest] = event
        return events


def format_line(event: FlowEvent) -> bytes:
    """The line for a start or an end; FlowEventError for ongoing, which the pipe has no word for."""
    if event.state is FlowState.ONGOING:
        raise FlowEventError(f"{event.key}: the pipe has no line for ongoing")
    key = event.key
    return (
        f"{event.state.value} {key.protocol} {key.src} {key.src_port} {key.dst} {key.dst_port} "
        f"{event.tag.experiment} {event.tag.activity}\n"
    ).encode("ascii")


def last_beginning(line: bytes) -> int:
    """Where the last event in a damaged line begins; 0 when only one does.

    A writer that died within a line leaves its beginning in front of the next writer's.
    """
    return max((found.start() for found in _BEGINNING.finditer(line)), default=0)


# A storage has few peers and few tags at a time, and reading these costs more than all the rest of a line.
@lru_cache(maxsize=1 << 14)
def _all_but_ports(  # noqa: PLR0917  (the fields of a line)
    word: bytes, protocol: bytes, src: bytes, dst: bytes, experiment: bytes, activity: bytes
) -> tuple[FlowState, Transport, str, str, str, Tag]:
    state = _STATES.get(word.lower())
    if state is None:
        raise FlowEventError(f"state {shown(word.decode('ascii'))} is neither start nor end")
    written = dst.decode("ascii")
    # That both are of one family is checked there.
    key = FlowKey.of(src.decode("ascii"), 0, written, 0, protocol.decode("ascii"))
    return state, key.protocol, key.src, key.dst, zone_of(written), _tag(experiment, activity, state is _END)


def _tag(experiment: bytes, activity: bytes, is_end: bool) -> Tag:
    if not (experiment + activity).isdigit():
        raise FlowEventError(f"experiment {shown(experiment)} or activity {shown(activity)} is not a number")
    first, second = int(experiment), int(activity)
    if is_end and second > ACTIVITY_MAX and first <= ACTIVITY_MAX:
        # No activity is that large: it is the experiment.
        return check_tag(second, first)
    return check_tag(first, second)
