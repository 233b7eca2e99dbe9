"""Tell the agent about flows, from Python: a few lines over its Unix socket.

with AgentClient("/run/scitags/agent.sock") as agent:
    agent.send([event])                 # returns at once, whatever the agent does
    agent.announce([event])             # returns when the packets are marked
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from scitags_core.errors import PeerDataError, ScitagsError
from scitags_core.flow import FlowEvent
from scitags_core.flow_json import encode_event

ANSWER_OCTETS = 1 << 18


class AgentUnavailable(ScitagsError):
    """There is no agent at the socket, or it did not answer in time."""


class AgentClient:
    """A connection to the agent's Unix socket. Not to be shared by threads."""

    def __init__(self, path: str | os.PathLike[str] = "/run/scitags/agent.sock") -> None:
        self._path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._own: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing behind."""
        self._socket.close()
        if self._own is not None:
            self._own.unlink(missing_ok=True)
            self._own.parent.rmdir()
            self._own = None

    def send(self, events: Sequence[FlowEvent]) -> bool:
        """Hand events over without waiting; False when the agent is absent or busy. Never raises for that."""
        message = b"[" + b",".join(encode_event(event) for event in events) + b"]"
        try:
            self._socket.sendto(message, socket.MSG_DONTWAIT, self._path)
        except OSError:
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

    def _ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        if self._own is None:
            own = Path(tempfile.mkdtemp(prefix="scitags-client-")) / "socket"
            self._socket.bind(os.fspath(own))
            self._own = own
        self._socket.settimeout(timeout)
        try:
            self._socket.sendto(msgspec.json.encode(request), self._path)
            answer = msgspec.json.decode(self._socket.recv(ANSWER_OCTETS))
        except OSError as error:
            raise AgentUnavailable(f"no answer from the agent at {self._path}: {error}") from None
        if not isinstance(answer, dict):
            raise PeerDataError(f"the agent at {self._path} answered {answer!r}")
        return answer
