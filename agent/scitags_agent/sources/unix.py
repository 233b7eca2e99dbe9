"""A Unix socket that takes our own JSON (scitags_core.flow_json), in datagrams or by connection (SOCK_SEQPACKET).

A message is one event, an array of events, or a request, which is an object with a member "request":

    {"request": "events", "events": [...]}  ->  {"accepted": 2, "refused": ["why the third is not"]}
    {"request": "status"}                   ->  the agent's counters
    {"request": "flows", "from": 0}         ->  {"total": 3, "flows": [...]}: as many as fit, from that one on

A request is answered on the Unix socket that comes along with it, on the connection, or to the address that the sender
of a datagram has bound (scitags_agent.answers). The answer to events comes when the backends have dealt with them: from
then on the packets are marked.

A message may stand behind the header of old-style syslog: nginx logs to a Unix socket in no other way.

The kernel says who the sender is. A descriptor of the transfer's socket may come along with an event (SCM_RIGHTS): it
tells what the event leaves open, and is kept until the flow ends, so that the agent can act on the socket.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import grp
import logging
import os
import pwd
import socket
import stat
import struct
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from scitags_agent.answers import AnswerWay
from scitags_agent.local_path import OwnSocket, admit, group_id, parse_mode
from scitags_agent.passed_sockets import PassedSockets, identified
from scitags_core.errors import ConfigError, FlowEventError, shown
from scitags_core.flow import FlowEvent, FlowState
from scitags_core.flow_json import events_of, json_of
from scitags_core.roles import EventSink, SourceKind
from scitags_core.syslog import behind_old_header

if TYPE_CHECKING:
    from scitags_agent.senders import Senders

log = logging.getLogger(__name__)

MAX_MESSAGE = 1 << 18  # the kernel's default bound for a message is below this
MESSAGES_AT_ONCE = 256
BACKLOG_OCTETS = 1 << 22
DESCRIPTORS_AT_ONCE = 64
NUMBER_MAX = (1 << 63) - 1 - (1 << 32)  # of a flow that is asked for: with as many more as are shown, it fits a C long
FLOWS_AT_ONCE = 400
MAX_ANSWERS = 4096  # that wait until events are in force; each may hold a descriptor
_CREDENTIALS = struct.Struct("=iII")
_ANCILLARY_OCTETS = socket.CMSG_SPACE(DESCRIPTORS_AT_ONCE * array.array("i").itemsize) + socket.CMSG_SPACE(
    _CREDENTIALS.size
)
_GROUPS_FOR_SECONDS = 60


class UnixSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """path of the socket, its mode (octal), and the group that may write to it.

    type              datagram or seqpacket
    users, groups     by name or id, who may send; both empty: whoever the mode lets in
    max_connections   of a seqpacket socket at once
    max_sockets       descriptors of transfers' sockets that wait at once for who acts on them
    namespaces        network namespaces of senders (scitags_agent.namespaces): what one of them tells is of its own
    """

    path: str = "/run/scitags/agent.sock"
    mode: str = "0660"
    group: str = ""
    type: Literal["datagram", "seqpacket"] = "datagram"
    users: list[str | int] = []
    groups: list[str | int] = []
    max_connections: int = 256
    max_sockets: int = 512
    namespaces: list[str] = []


class Sender(msgspec.Struct, frozen=True):
    """Who sent a message, as the kernel says."""

    process: int
    user: int
    group: int


class UnixSocket:
    """The source. One instance for each socket."""

    def __init__(self, settings: UnixSettings) -> None:
        """Raises ConfigError."""
        self._settings = settings
        self._path = Path(settings.path)
        self._mode = parse_mode(settings.mode)
        self._group = group_id(settings.group)
        self._users = {_user_id(name) for name in settings.users}
        self._groups = {group_id(name) if isinstance(name, str) else name for name in settings.groups}
        self._sockets = PassedSockets(settings.max_sockets)
        self._connections: set[socket.socket] = set()
        self._answers: set[asyncio.Task[None]] = set()
        self._senders: Senders | None = None

    async def run(self, sink: EventSink) -> None:
        """Receive until cancelled; then the socket's file is gone."""
        loop = asyncio.get_running_loop()
        is_datagram = self._settings.type == "datagram"
        kind = socket.SOCK_DGRAM if is_datagram else socket.SOCK_SEQPACKET
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as receiver:
            file = self._bind(receiver, kind)
            if self._settings.namespaces:
                from scitags_agent.senders import Senders  # noqa: PLC0415  # few agents need it

                self._senders = Senders(self._settings.namespaces)
            handle = self._receive if is_datagram else self._admit
            loop.add_reader(receiver, handle, receiver, sink)
            try:
                await file.watch()
            finally:
                loop.remove_reader(receiver)
                file.remove()
                # What was sent before we left is ours to deal with.
                for one in (receiver,) if is_datagram else tuple(self._connections):
                    while self._receive(one, sink):
                        pass
                await asyncio.gather(*self._answers, return_exceptions=True)
                for one in tuple(self._connections):
                    self._dismiss(one)
                self._sockets.close()
                if self._senders is not None:
                    self._senders.close()
                    self._senders = None

    def _bind(self, receiver: socket.socket, kind: socket.SocketKind) -> OwnSocket:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise ConfigError(f"{self._path} is there and is no socket")
            if _is_alive(self._path, kind):
                raise ConfigError(f"{self._path}: another agent listens there")
            self._path.unlink()
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BACKLOG_OCTETS)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.bind(os.fspath(self._path))
        if kind == socket.SOCK_SEQPACKET:
            receiver.listen(128)
        admit(self._path, self._mode, self._group)
        return OwnSocket(self._path)

    # --- connections -------------------------------------------------------------------------------

    def _admit(self, listener: socket.socket, sink: EventSink) -> None:
        """Take a connection."""
        try:
            connection, _ = listener.accept()
        except OSError:  # the caller has left, or there are no descriptors: it is tried again
            return
        if len(self._connections) >= self._settings.max_connections:
            sink.refuse("there are too many connections")
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._connections.add(connection)
        asyncio.get_running_loop().add_reader(connection, self._receive, connection, sink)

    def _dismiss(self, connection: socket.socket) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            asyncio.get_running_loop().remove_reader(connection)
            connection.close()

    # --- messages ----------------------------------------------------------------------------------

    def _receive(self, receiver: socket.socket, sink: EventSink) -> int:
        """Take what is there, up to a bound so that others get their turn; how many messages there were."""
        for count in range(MESSAGES_AT_ONCE):
            try:
                message, ancillary, _, address = receiver.recvmsg(
                    MAX_MESSAGE, _ANCILLARY_OCTETS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return count
            except OSError:
                self._dismiss(receiver)
                return count
            descriptors, sender = _unpack(ancillary)
            try:
                if not message and receiver in self._connections:
                    self._dismiss(receiver)
                    return count
                self._check(sender)
                namespace = self._senders.namespace_of(sender.process) if self._senders and sender else 0
                self._take(message, descriptors, namespace, (receiver, address), sink)
            except FlowEventError as error:
                sink.refuse(str(error))
            finally:
                for descriptor in descriptors:
                    if descriptor >= 0:
                        os.close(descriptor)
        return MESSAGES_AT_ONCE

    def _check(self, sender: Sender | None) -> None:
        """FlowEventError when the sender is none of those who may."""
        if not self._users and not self._groups:
            return
        if sender is None:
            raise FlowEventError("the sender is not known")
        if sender.user in self._users:
            return
        moment = int(time.monotonic()) // _GROUPS_FOR_SECONDS
        if not self._groups.isdisjoint(_groups_of(sender.user, sender.group, moment)):
            return
        raise FlowEventError(f"user {sender.user} may not send (process {sender.process})")

    def _take(
        self, message: bytes, descriptors: list[int], namespace: int, back: tuple[socket.socket, Any], sink: EventSink
    ) -> None:
        content = json_of(behind_old_header(message))
        request = content.get("request") if isinstance(content, dict) else None
        if request is None:
            self._accept(content, descriptors, namespace, sink)
            return
        with contextlib.ExitStack() as stack:
            way = stack.enter_context(AnswerWay(*back, descriptors))
            try:
                if request == "events":
                    accepted, refused = self._accept(content.get("events"), descriptors, namespace, sink)
                    if len(self._answers) < MAX_ANSWERS:
                        self._answer_later(way, accepted, refused, sink)
                        stack.pop_all()
                elif request == "status":
                    way.send(msgspec.json.encode(sink.status()))
                elif request == "flows":
                    way.send(_flows(content.get("from", 0), sink))
                else:
                    raise FlowEventError(f"request {shown(request)} is none of events, flows and status")
            except FlowEventError as error:
                way.send(msgspec.json.encode({"error": str(error)}))
                raise

    def _answer_later(self, way: AnswerWay, accepted: int, refused: list[str], sink: EventSink) -> None:
        task = asyncio.get_running_loop().create_task(_answer_when_settled(way, accepted, refused, sink))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def _accept(self, content: Any, descriptors: list[int], namespace: int, sink: EventSink) -> tuple[int, list[str]]:
        events, refused = events_of(content)
        if namespace:
            events = [msgspec.structs.replace(event, key=event.key.within(namespace)) for event in events]
        if descriptors:
            events, more = self._with_sockets(events, descriptors)
            refused += more
        elif len(self._sockets):
            for event in events:
                if event.state is FlowState.END:
                    self._sockets.let_go(event.key)
        sink.accept_many(events)
        for reason in refused:
            sink.refuse(reason)
        return len(events), refused

    def _with_sockets(self, events: Sequence[FlowEvent], descriptors: list[int]) -> tuple[list[FlowEvent], list[str]]:
        """The events, each with what its descriptor tells: the first belongs to the first event, and so on."""
        if len(descriptors) > len(events):
            return list(events), [f"{len(descriptors)} descriptors came with {len(events)} events"]
        found: list[FlowEvent] = []
        refused: list[str] = []
        for number, event in enumerate(events):
            if number >= len(descriptors):
                found.append(event)
                continue
            try:
                known = identified(event, descriptors[number])
            except FlowEventError as error:
                refused.append(str(error))
                continue
            if self._senders is not None:
                known = self._senders.placed(known, descriptors[number])
            found.append(known)
            if known.state is FlowState.END:
                self._sockets.let_go(known.key)
            elif self._sockets.keep(known.key, descriptors[number]):
                descriptors[number] = -1  # ours from here on
        return found, refused


def _unpack(ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[list[int], Sender | None]:
    """The descriptors and the sender in a message's control data."""
    descriptors = array.array("i")
    sender = None
    for level, kind, octets in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(octets[: len(octets) - len(octets) % descriptors.itemsize])
        elif kind == socket.SCM_CREDENTIALS and len(octets) >= _CREDENTIALS.size:
            sender = Sender(*_CREDENTIALS.unpack_from(octets))
    return list(descriptors), sender


def _flows(first: Any, sink: EventSink) -> bytes:
    """The answer with those from that number on."""
    if not isinstance(first, int) or not 0 <= first <= NUMBER_MAX:
        raise FlowEventError(f"from {shown(first)} is no number of a flow")
    total = sink.status()["table"]["transfers"]
    return msgspec.json.encode({"total": total, "flows": sink.flows(first, FLOWS_AT_ONCE)})


async def _answer_when_settled(way: AnswerWay, accepted: int, refused: list[str], sink: EventSink) -> None:
    with way:
        await sink.settled()
        way.send(msgspec.json.encode({"accepted": accepted, "refused": refused}))


def _user_id(name: str | int) -> int:
    if isinstance(name, int):
        return name
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"there is no user {shown(name)}") from None


@lru_cache(maxsize=256)
def _groups_of(user: int, group: int, _moment: int) -> frozenset[int]:
    """The groups of a user, by the host's files; looked up again as moments pass."""
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        return frozenset({group})
    return frozenset({group, *(one.gr_gid for one in grp.getgrall() if name in one.gr_mem)})


def _is_alive(path: Path, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except OSError as error:  # of the other type, then, which is another agent's as well
            return error.errno == errno.EPROTOTYPE
    return True


KIND = SourceKind("unix", UnixSettings, UnixSocket)
