"""What the transfer service asks a storage, and the storage's answers: a line of JSON each, over a Unix socket.

The service is to these storages what FTS is to real ones. A Unix socket crosses network namespaces, so none of
this is seen on the demonstration's network.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from scitags_demo.errors import DemoError
from scitags_demo.plan import Channel


class Listen(msgspec.Struct, frozen=True, tag="listen"):
    """Accept connections there."""

    address: str
    port: int


class Report(msgspec.Struct, frozen=True, tag="report"):
    """Tell the agent of these flow events (scitags_core.flow_json) and wait until they are in force."""

    channel: Channel
    events: list[dict[str, Any]]


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Connect from exactly this local port."""

    connection: int
    address: str
    port: int
    to_address: str
    to_port: int
    dscp: int


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """Wait for the connection from there, and know it by this number from now on."""

    connection: int
    from_address: str
    from_port: int
    dscp: int


class Send(msgspec.Struct, frozen=True, tag="send"):
    """Send a file at this pace; answered when the far end's kernel has acknowledged all of it."""

    connection: int
    transfer: int
    octets: int
    octets_a_second: float


class Receive(msgspec.Struct, frozen=True, tag="receive"):
    """Answered when the whole file has come."""

    connection: int
    transfer: int


class Hold(msgspec.Struct, frozen=True, tag="hold"):
    """Send nothing on the connection from now on; answered when all that was sent is acknowledged."""

    connection: int


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    connection: int


class Close(msgspec.Struct, frozen=True, tag="close"):
    """Close our direction; answered when the other is closed too."""

    connection: int


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a storage says when it has done so.

    problem          why it could not; empty otherwise
    octets           of the file (send, receive), or handed to TCP on this connection so far (hold, close)
    retransmitted    octets that TCP had to send again (close)
    segments         that TCP sent (close)
    """

    problem: str = ""
    octets: int = 0
    retransmitted: int = 0
    segments: int = 0


Request = Listen | Report | Open | Accepted | Send | Receive | Hold | Resume | Close


class StorageClient:
    """A line to a storage. One thread's alone."""

    def __init__(self, path: Path, seconds: float) -> None:
        """seconds bounds every answer."""
        self._name = path.stem
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(seconds)
        self._socket.connect(os.fspath(path))
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, request: Request) -> Answer:
        """The answer. Raises DemoError for one that says that it could not be, and for none."""
        try:
            self._socket.sendall(msgspec.json.encode(request) + b"\n")
            line = self._lines.readline()
        except OSError as error:
            raise DemoError(
                f"storage {self._name}: {type(request).__name__}: {error or type(error).__name__}"
            ) from None
        if not line:
            raise DemoError(f"storage {self._name} has gone")
        answer = msgspec.json.decode(line, type=Answer)
        if answer.problem:
            raise DemoError(f"storage {self._name}: {answer.problem}")
        return answer
