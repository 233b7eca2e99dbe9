"""The line of the named pipe, which storages and shell scripts have written to flowd for years.

    STATE PROTO SRC SPORT DST DPORT EXPERIMENT ACTIVITY\\n       start tcp 2001:db8::1 8085 2001:db8::2 43720 2 15

Fields are split on any white space; STATE is start or end, PROTO tcp or udp, both in any case. StoRM WebDAV
writes IPv6 addresses in square brackets and not shortened, and 0 0 for a tag that it could not use. Its recipe for
nginx writes ends with ACTIVITY and EXPERIMENT the other way round: where the numbers show it, they are put right here;
where they do not, the table of flows does it, which knows the start.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from scitags_core.errors import FlowEventError, shown
from scitags_core.flow import (
    PORT_MAX,
    FlowEvent,
    FlowKey,
    FlowState,
    Transport,
    canonical_address,
    check_tag,
    zone_of,
)
from scitags_core.tag import ACTIVITY_MAX, Tag

FIELDS = 8
_PROTOCOLS: dict[bytes, Transport] = {b"tcp": "tcp", b"udp": "udp"}
_STATES = {b"start": FlowState.START, b"end": FlowState.END}
_BEGINNING = re.compile(rb"(?:start|end)[ \t]+(?:tcp|udp)[ \t]", re.IGNORECASE)


def parse_line(line: bytes, now: datetime | None = None) -> FlowEvent:
    """The event in a line, with or without its newline. FlowEventError names what is wrong.

    now is taken for the start time of a start, which the line does not tell.
    """
    fields = line.split()
    if len(fields) != FIELDS:
        raise FlowEventError(f"{shown(line)} has {len(fields)} fields, not {FIELDS}")
    state, protocol, src, src_port, dst, dst_port, experiment, activity = fields
    try:
        # int() takes a sign, and underscores, too.
        if not (src_port + dst_port).isdigit():
            raise FlowEventError(f"{shown(line)}: a port is not a number")
        source, destination = _address(src), _address(dst)
        from_port, to_port = int(src_port), int(dst_port)
        if from_port > PORT_MAX or to_port > PORT_MAX or destination.is_ipv6 is not source.is_ipv6:
            # What is wrong is said by what checks it everywhere.
            FlowKey.of(source.text, from_port, destination.text, to_port)
        known = _STATES.get(state) or _state(state)
        return FlowEvent(
            state=known,
            key=FlowKey(
                source.text, from_port, destination.text, to_port, _PROTOCOLS.get(protocol) or _protocol(protocol)
            ),
            tag=_tag(experiment, activity, known is FlowState.END),
            start_time=now if known is FlowState.START else None,
            zone=destination.zone,
        )
    except UnicodeDecodeError:
        raise FlowEventError(f"{shown(line)} is not ASCII") from None
    except ValueError as error:  # an integer of thousands of digits
        raise FlowEventError(f"{error} in {shown(line)}") from None


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


class _Address(NamedTuple):
    text: str
    zone: str
    is_ipv6: bool


# A storage has few peers and few tags at a time, and reading one costs more than all the rest of a line.
@lru_cache(maxsize=1 << 16)
def _address(word: bytes) -> _Address:
    written = word.decode("ascii")
    text = canonical_address(written)
    return _Address(text, zone_of(written), ":" in text)


@lru_cache(maxsize=1 << 12)
def _tag(experiment: bytes, activity: bytes, is_end: bool) -> Tag:
    if not (experiment + activity).isdigit():
        raise FlowEventError(f"experiment {shown(experiment)} or activity {shown(activity)} is not a number")
    first, second = int(experiment), int(activity)
    if is_end and second > ACTIVITY_MAX and first <= ACTIVITY_MAX:
        # No activity is that large: it is the experiment.
        return check_tag(second, first)
    return check_tag(first, second)


def _protocol(word: bytes) -> Transport:
    found = _PROTOCOLS.get(word.lower())
    if found is None:
        raise FlowEventError(f"protocol {shown(word.decode('ascii'))} is neither tcp nor udp")
    return found


def _state(word: bytes) -> FlowState:
    state = _STATES.get(word.lower())
    if state is None:
        raise FlowEventError(f"state {shown(word.decode('ascii'))} is neither start nor end")
    return state
