"""Tell the agent about flows, from Python: a few lines over its Unix socket.

with AgentClient("/run/scitags/agent.sock") as agent:
    agent.send([event])                 # returns at once, whatever the agent does
    agent.announce([event])             # returns when the packets are marked
"""

from __future__ import annotations

import errno
import os
import socket
from array import array
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from scitags_core.errors import PeerDataError, ScitagsError
from scitags_core.flow import FlowEvent
from scitags_core.flow_json import encode_event

ANSWER_OCTETS = 1 << 18


class AgentUnavailable(ScitagsError):
    """There is no agent at the socket, or it did not answer in time."""


class AgentClient:
    """A connection to the agent's Unix socket. Not to be shared by threads."""

    def __init__(
        self,
        path: str | os.PathLike[str] = "/run/scitags/agent.sock",
        *,
        type: Literal["datagram", "seqpacket"] = "datagram",  # noqa: A002  (the word of the configuration)
    ) -> None:
        """A socket that takes connections is spoken to by connection, also where type says "datagram"."""
        self._path = os.fspath(path)
        self._is_datagram = type == "datagram"
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing behind."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, events: Sequence[FlowEvent], sockets: Sequence[socket.socket] = ()) -> bool:
        """Hand events over without waiting; False when the agent is absent or busy. Never raises for that.

        sockets are those of the transfers, of the first event the first: the agent then knows a flow's ports (which
        may be 0 in the event), and can act on its socket. The caller keeps them.
        """
        message = b"[" + b",".join(encode_event(event) for event in events) + b"]"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [one.fileno() for one in sockets]).tobytes())]
        try:
            connection = self._connected()
            address = self._path if self._is_datagram else None
            connection.sendmsg([message], rights if sockets else [], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, address)
        except BlockingIOError:
            return False
        except OSError as error:
            if self._adapts_to(error):
                return self.send(events, sockets)
            self._forget()
            return False
        return True

    def announce(self, events: Sequence[FlowEvent], *, timeout: float = 1.0) -> list[str]:
        """Hand events over and wait until they are in force; the reasons why some were refused.

        timeout is in seconds. Raises AgentUnavailable.
        """
        items = [msgspec.Raw(encode_event(event)) for event in events]
        answer = self._ask({"request": "events", "events": items}, timeout)
        return [str(reason) for reason in answer.get("refused", [])]

    def status(self, *, timeout: float = 1.0) -> dict[str, Any]:
        """What the agent counts. timeout is in seconds. Raises AgentUnavailable."""
        return self._ask({"request": "status"}, timeout)

    def flows(self, *, timeout: float = 1.0) -> Iterator[dict[str, Any]]:
        """Every transfer under way, as JSON has it. timeout is in seconds, for each answer. Raises AgentUnavailable.

        The table goes on changing: a transfer that begins or ends meanwhile may be missed, another come twice.
        """
        first, total = 0, 1
        while first < total:
            answer = self._ask({"request": "flows", "from": first}, timeout)
            part, total = answer.get("flows", []), int(answer.get("total", 0))
            if not part:
                return
            yield from part
            first += len(part)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            kind = socket.SOCK_DGRAM if self._is_datagram else socket.SOCK_SEQPACKET
            fresh = socket.socket(socket.AF_UNIX, kind)
            try:
                if not self._is_datagram:
                    fresh.connect(self._path)
            except OSError:
                fresh.close()
                raise
            self._socket = fresh
        return self._socket

    def _forget(self) -> None:
        """Connect anew at the next use: the agent may have been started again."""
        if not self._is_datagram and self._socket is not None:
            self._socket.close()
            self._socket = None

    def _adapts_to(self, error: Exception) -> bool:
        """Whether it failed for the type of the socket alone, which is known from now on."""
        if not (self._is_datagram and isinstance(error, OSError) and error.errno == errno.EPROTOTYPE):
            return False
        self.close()
        self._is_datagram = False
        return True

    def _ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            message = self._answer_to(msgspec.json.encode(request), timeout)
            answer = msgspec.json.decode(message) if message else None
        except (OSError, msgspec.DecodeError) as error:
            if self._adapts_to(error):
                return self._ask(request, timeout)
            self._forget()
            raise AgentUnavailable(f"no answer from the agent at {self._path}: {error}") from None
        if not message:  # it has ended
            self._forget()
            raise AgentUnavailable(f"no answer from the agent at {self._path}")
        if not isinstance(answer, dict) or "error" in answer:
            raise PeerDataError(f"the agent at {self._path} answered {answer!r}")
        return answer

    def _answer_to(self, message: bytes, timeout: float) -> bytes:
        connection = self._connected()
        connection.settimeout(timeout)
        if not self._is_datagram:
            connection.send(message, socket.MSG_NOSIGNAL)
            return connection.recv(ANSWER_OCTETS)
        # The agent may be another user's, and where it sees neither our files nor our network namespace: it gets a
        # socket to answer on.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                rights = array("i", [theirs.fileno()]).tobytes()
                way_back = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                connection.sendmsg([message], way_back, socket.MSG_NOSIGNAL, self._path)
            ours.settimeout(timeout)
            return ours.recv(ANSWER_OCTETS)
