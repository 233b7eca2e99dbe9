"""The line of the named pipe, which storages and shell scripts have written to flowd for years.

    STATE PROTO SRC SPORT DST DPORT EXPERIMENT ACTIVITY\\n       start tcp 2001:db8::1 8085 2001:db8::2 43720 2 15

Fields are split on any white space; STATE is start or end, PROTO tcp or udp, both in any case. StoRM WebDAV
writes IPv6 addresses in square brackets and not shortened, and 0 0 for a tag that it could not use.
"""

from __future__ import annotations

import re

from scitags_core.errors import FlowEventError, shown
from scitags_core.flow import FlowEvent, FlowKey, FlowState, check_tag, zone_of

FIELDS = 8
_STATES = {b"start": FlowState.START, b"end": FlowState.END}
_BEGINNING = re.compile(rb"(?:start|end)[ \t]+(?:tcp|udp)[ \t]", re.IGNORECASE)


def parse_line(line: bytes) -> FlowEvent:
    """The event in a line, with or without its newline. FlowEventError names what is wrong."""
    fields = line.split()
    if len(fields) != FIELDS:
        raise FlowEventError(f"{shown(line)} has {len(fields)} fields, not {FIELDS}")
    try:
        state, protocol, src, src_port, dst, dst_port, experiment, activity = fields
        if not (src_port + dst_port + experiment + activity).isdigit():
            raise FlowEventError(f"{shown(line)}: port, experiment or activity is not a number")
        destination = dst.decode("ascii")
        return FlowEvent(
            state=_state(state),
            key=FlowKey.of(src.decode("ascii"), int(src_port), destination, int(dst_port), protocol.decode("ascii")),
            tag=check_tag(int(experiment), int(activity)),
            zone=zone_of(destination),
        )
    except UnicodeDecodeError:
        raise FlowEventError(f"{shown(line)} is not ASCII") from None
    except ValueError as error:  # an integer of thousands of digits, too
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


def _state(word: bytes) -> FlowState:
    state = _STATES.get(word) or _STATES.get(word.lower())
    if state is None:
        raise FlowEventError(f"state {shown(word.decode('ascii'))} is neither start nor end")
    return state
