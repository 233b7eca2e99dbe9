"""Extension headers set on live sockets, as their applications could set them themselves (RFC 3542)."""

from __future__ import annotations

import enum
import socket
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from scitags_agent.accepted import fits, is_accepted
from scitags_agent.big_tcp import may_be_big
from scitags_agent.bpf.namespaces import inside
from scitags_agent.connections import Lookup
from scitags_agent.inet_diag import OPEN_STATES, SYN_RECV, SYN_SENT, SockDiagError
from scitags_agent.live_socket import LiveSockets
from scitags_agent.namespaces import Finder, Found
from scitags_agent.passed_sockets import identified
from scitags_core import exthdr
from scitags_core.errors import FlowEventError, TagError
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import UNKNOWN, Tag

# linux/in6.h
IPV6_HOPOPTS = 54
IPV6_DSTOPTS = 59
IPV6_MTU_DISCOVER, IPV6_DONTFRAG = 23, 62
IPV6_PMTUDISC_DO, IPV6_PMTUDISC_PROBE, IPV6_PMTUDISC_INTERFACE = 2, 3, 4
_REFUSING = (IPV6_PMTUDISC_DO, IPV6_PMTUDISC_PROBE, IPV6_PMTUDISC_INTERFACE)
OPTIONS = {
    "destination-options": (IPV6_DSTOPTS,),
    "hop-by-hop": (IPV6_HOPOPTS,),
    "both": (IPV6_HOPOPTS, IPV6_DSTOPTS),
}
_FULL_DATAGRAMS = "its application makes datagrams as long as the path allows"
_BIG = "its packets may be longer than 64 KB (BIG TCP)"
_NO_ROOM = "the kernel makes no room for it in the packets of a connection that it has accepted"
_MOST_OCTETS = 1024  # of the options of a socket that are looked at; ours are 8


class Outcome(enum.Enum):
    """What became of an attempt; the value is the counter's name."""

    DONE = "done"
    NO_SOCKET = "no_socket"
    OWN_OPTIONS = "own_options"
    NO_RIGHT = "no_right"
    REFUSED = "kernel_refused"
    ACCEPTED = "accepted"
    OWN_SIZES = "own_sizes"
    BIG_TCP = "big_tcp"


class Job(msgspec.Struct):
    """What is to be done to a connection's socket; tag is None to take the header away."""

    key: FlowKey
    tag: Tag | None
    descriptor: int | None = None
    outcome: Outcome = Outcome.NO_SOCKET
    reason: str = ""


class SocketHeaders:
    """Sets headers. To be used in one thread at a time."""

    def __init__(self, header: str, namespaces: Sequence[str]) -> None:
        self._options = OPTIONS[header]
        self._namespaces = Finder(namespaces) if namespaces else None
        self._sockets = LiveSockets()

    def do(self, jobs: Sequence[Job]) -> None:
        """Each job is told its outcome. Descriptors that were passed along are closed."""
        self._sockets.begin()
        for job in jobs:
            try:
                if job.descriptor is not None:
                    self._act(job, job.descriptor, job.key.namespace)
                else:
                    self._find_and_act(job)
            except PermissionError as error:
                job.outcome, job.reason = Outcome.NO_RIGHT, f"{error}: CAP_SYS_PTRACE and CAP_NET_RAW are needed"
            except (ProcessLookupError, SockDiagError) as error:
                job.outcome, job.reason = Outcome.NO_SOCKET, str(error)
            except OSError as error:
                job.outcome, job.reason = Outcome.REFUSED, str(error)

    def begin(self) -> None:
        """Before each few questions in a row: sockets come and go."""
        self._sockets.begin()

    def opened(self, key: FlowKey) -> Iterator[socket.socket]:
        """This host's sockets of a connection, each open until the next is asked for. Raises OSError."""
        for inode, _ in self._ends(key):
            with socket.socket(fileno=self._sockets.take(inode)) as one:
                _check(one, key)
                yield one

    def _find_and_act(self, job: Job) -> None:
        job.reason = "no such connection is open on this host"
        for inode, place in self._ends(job.key):
            self._act(job, self._sockets.take(inode), place)

    def _ends(self, key: FlowKey) -> list[tuple[int, int]]:
        """Of this host's ends of a connection, one or both: the inode, and the network namespace's number."""
        ends = []
        others = self._others()
        # Where it is known, equal ones elsewhere are others.
        for place in (key.namespace,) if key.namespace else (0, *others):
            try:
                with inside(place, others), Lookup() as lookup:
                    for end in (key, key.reversed()):
                        found = lookup.find(end, details=False)
                        if found is not None and found.inode and found.state in OPEN_STATES | {SYN_SENT, SYN_RECV}:
                            ends.append((found.inode, place))
            except (FileNotFoundError, ProcessLookupError):
                continue  # the namespace has gone, and its sockets with it
        return ends

    def _others(self) -> Mapping[int, Found]:
        return self._namespaces.recent() if self._namespaces is not None else {}

    def _act(self, job: Job, descriptor: int, place: int) -> None:
        """Set the options of a socket in a network namespace; the descriptor is closed."""
        with socket.socket(fileno=descriptor) as one:
            _check(one, job.key)
            present = {option: one.getsockopt(socket.IPPROTO_IPV6, option, _MOST_OCTETS) for option in self._options}
            if not all(_is_ours(octets) for octets in present.values()):
                job.outcome, job.reason = Outcome.OWN_OPTIONS, "the application has set options of its own"
                return
            is_new = job.tag is not None and not any(present.values())
            if is_new and self._is_better_without(job, one, place):
                return
            for option in self._options:
                if job.tag is not None:
                    one.setsockopt(socket.IPPROTO_IPV6, option, exthdr.encode(job.tag.experiment, job.tag.activity, 0))
                elif present[option]:
                    one.setsockopt(socket.IPPROTO_IPV6, option, None, 0)
            job.outcome = Outcome.DONE
            if is_new and not fits(one, exthdr.HEADER_OCTETS * len(self._options)):
                for option in self._options:
                    one.setsockopt(socket.IPPROTO_IPV6, option, None, 0)
                job.outcome, job.reason = Outcome.ACCEPTED, _NO_ROOM

    def _is_better_without(self, job: Job, one: socket.socket, place: int) -> bool:
        """Whether a header on the socket would harm what it sends; the job then says why."""
        if one.type == socket.SOCK_DGRAM:
            if _fits_datagrams_to_the_path(one):
                job.outcome, job.reason = Outcome.OWN_SIZES, _FULL_DATAGRAMS
        elif is_accepted(one):
            job.outcome, job.reason = Outcome.ACCEPTED, _NO_ROOM
        else:
            with inside(place, self._others()):
                if may_be_big(job.key):
                    job.outcome, job.reason = Outcome.BIG_TCP, _BIG
        return job.outcome is not Outcome.NO_SOCKET


def _check(one: socket.socket, key: FlowKey) -> None:
    """Between the look and the grasp the number may have come to name another: ProcessLookupError."""
    try:
        identified(FlowEvent(state=FlowState.START, key=key, tag=UNKNOWN), one.fileno())
    except FlowEventError as error:
        raise ProcessLookupError(str(error)) from None


def _fits_datagrams_to_the_path(one: socket.socket) -> bool:
    """Whether the kernel refuses datagrams that are too long, as QUIC has it do: full ones would not leave any more."""
    discovery = one.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
    return discovery in _REFUSING or bool(one.getsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG))


def _is_ours(octets: bytes) -> bool:
    """Whether a socket has no options, or one that an agent has set."""
    if not octets:
        return True
    try:
        exthdr.decode(octets)
    except TagError:
        return False
    return len(octets) == exthdr.HEADER_OCTETS
