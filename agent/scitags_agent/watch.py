"""Reports of connections (scitags_agent.bpf.connections) as the agent's sources and enrichers want them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from scitags_agent.bpf.connections import ConnectionsProgram, cgroup_root
from scitags_agent.bpf.connections_layout import Connection, Event, PortFilter
from scitags_agent.rules import Rule, port_ranges
from scitags_core.errors import ConfigError, shown
from scitags_core.flow import Usage

if TYPE_CHECKING:
    from scitags_agent.open_namespaces import Namespaces

REPORTS_AT_ONCE = 512


class ConnectionWatch:
    """A program in the kernel whose reports are handed over as they come."""

    def __init__(
        self, program: ConnectionsProgram, heard: Callable[[Sequence[Connection]], None], lost: Callable[[int], None]
    ) -> None:
        """heard is given what has come, the oldest first; lost, how many reports have found no room since."""
        self._program = program
        self._heard = heard
        self._lost = lost
        self._told_lost = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(program.fileno(), self.take)

    def take(self) -> int:
        """Hand over what is there, up to a bound so that others get their turn; how many reports that was."""
        reports = self._program.take(REPORTS_AT_ONCE)
        self._heard(reports)
        lost = self.counters()["lost"]
        if lost != self._told_lost:
            self._lost(lost - self._told_lost)
            self._told_lost = lost
        return len(reports)

    def take_all(self) -> None:
        """Hand over everything that is there."""
        while self.take() == REPORTS_AT_ONCE:
            pass

    def counters(self) -> dict[str, int]:
        """Reports since the start: written by the kernel, and lost for want of room."""
        return self._program.counters()

    def close(self) -> None:
        """Hand over what is left, and take the program away."""
        self._loop.remove_reader(self._program.fileno())
        self.take_all()
        self._program.close()


def placed(connections: Iterable[Connection], namespaces: Namespaces, *, strange: bool = False) -> list[Connection]:
    """Those of the agent's own namespace and of these, their keys saying in which they are.

    strange: and those of all others, as if they were in the agent's own. Where the kernel does not tell, all are.
    """
    own = (0, namespaces.own_cookie)
    found = []
    for one in connections:
        if one.netns in own:
            found.append(one)
            continue
        there = namespaces.by_cookie(one.netns)
        if there is not None:
            found.append(msgspec.structs.replace(one, key=one.key.within(there.number)))
        elif strange:
            found.append(one)
    return found


def check_buffer(octets: int) -> None:
    """Raises ConfigError for a size that the kernel's ring buffer cannot have."""
    if octets & (octets - 1):
        raise ConfigError(f"buffer {octets} is no power of two")


def cgroup_path(below: str) -> Path:
    """A cgroup by its path below the mount of cgroup2, which is all when empty. Raises ConfigError."""
    parts = Path(below.lstrip("/")).parts
    if ".." in parts:
        raise ConfigError(f"cgroup {shown(below)} leads out of the tree")
    return cgroup_root().joinpath(*parts)


def port_filters(rules: Iterable[Rule]) -> list[PortFilter]:
    """What the kernel may leave out: the ports beyond these belong to no rule that gives a tag."""
    return [one for rule in rules if not rule.ignore and rule.protocol != "udp" for one in _filters_of(rule)]


def _filters_of(rule: Rule) -> Iterator[PortFilter]:
    for local, remote in product(_ends(port_ranges(rule.local_ports)), _ends(port_ranges(rule.remote_ports))):
        yield PortFilter(local, remote)


def _ends(ranges: Sequence[range]) -> list[tuple[int, int]]:
    return [(one.start, one.stop - 1) for one in ranges] or [PortFilter().local]


def instant(connection: Connection) -> datetime:
    """When the kernel saw it, by the clock on the wall."""
    ago = time.monotonic_ns() - connection.when
    return datetime.now(UTC) - timedelta(microseconds=ago / 1000)


def usage_of(sent: int, received: int, *, is_source: bool) -> Usage:
    """Octets that the local end has sent and received, as the source of a flow counts them, which is_source or not."""
    return Usage(received=received, sent=sent) if is_source else Usage(received=sent, sent=received)


def zone(connection: Connection) -> str:
    """The zone index of a link-local destination, empty for any other and for an interface that has gone."""
    if not connection.interface or not connection.key.dst.startswith("fe8"):
        return ""
    try:
        return socket.if_indextoname(connection.interface)
    except OSError:
        return ""


def details(connection: Connection) -> dict[str, Any]:
    """The object that flowd-go calls skOps, with what the program reports and under the names that it uses there.

    Times are in microseconds.
    """
    return {
        "tcpInfo": {
            "state": connection.old_state.name if connection.event is Event.CLOSED else "ESTABLISHED",
            "sndMss": connection.mss,
            "sndCwnd": connection.congestion_window,
            "rtt": connection.rtt,
            "minRtt": connection.min_rtt,
            "lost": connection.lost,
            "totalRetrans": connection.retransmitted,
            "bytesAcked": connection.sent,
            "bytesRecv": connection.received,
            "segsOut": connection.segments_sent,
            "segsIn": connection.segments_received,
            "delivered": connection.delivered,
            "deliveredCe": connection.delivered_ce,
        }
    }
