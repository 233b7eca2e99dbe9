"""Behaves as dCache 12.0.1 does, WebDAV door and pool on one host: what its pool tells, when, and with which ports.

A client asks the door; the pool tells of a start with the port of *that* connection; the client is sent to the pool,
and connects to the one port that the pool has for all, 1 to 20 ms after the start. Its end says that it began when it
ended, and ended later than now. Both connections stay open for the client's next transfer.
"""

from __future__ import annotations

import itertools
import json
import socket
import time
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from scitags_core.tag import Tag
from tests.netns.namespaces import Namespace

DOOR, POOL, FIREFLIES = 2880, 20005, 10514
SECONDS = 20.0
# Below those that the kernel gives: no two connections of a test have the same.
_client_ports = itertools.cycle(range(21000, 32000))


def java_instant(moment: datetime) -> str:
    """Nine digits of a second."""
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}371Z"


class Pool:
    """Door and pool of one host, whose agent hears fireflies on loopback."""

    def __init__(self, host: Namespace, address: str) -> None:
        self.address = address
        with host.entered():
            self._door = socket.create_server((address, DOOR), family=socket.AF_INET6)
            self._movers = socket.create_server((address, POOL), family=socket.AF_INET6, backlog=64)
            self._fireflies = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        for one in (self._door, self._movers):
            one.settimeout(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in (self._door, self._movers, self._fireflies):
            one.close()

    def accept_at_door(self) -> socket.socket:
        return self._door.accept()[0]

    def accept(self) -> socket.socket:
        """The next data connection."""
        accepted, _ = self._movers.accept()
        accepted.settimeout(SECONDS)
        return accepted

    def tell(
        self,
        state: str,
        client: tuple[str, int],
        tag: Tag,
        *,
        sent: int = 0,
        seconds: float = 0.0,
        own_port: int = POOL,
        application: str = "http",
    ) -> None:
        """A firefly to the client's host, and once more to the agent. seconds is for how long the transfer took.

        Of what the pool pushes elsewhere it tells an end alone, with the port 0 for its own.
        """
        now = datetime.now(UTC)
        lifecycle = {"start-time": java_instant(now), "state": state, "current-time": java_instant(now)}
        usage: dict[str, int] = {}
        if state == "end":
            lifecycle["end-time"] = java_instant(now + timedelta(seconds=seconds))
            usage = {"received": 0, "sent": sent}
        content: dict[str, Any] = {
            "flow-id": {
                "dst-ip": self.address, "src-ip": client[0], "protocol": "tcp", "afi": "ipv6",
                "src-port": client[1], "dst-port": own_port,
            },
            "flow-lifecycle": lifecycle,
            "usage": usage,
            "context": {"application": application, "activity-id": tag.activity, "experiment-id": tag.experiment},
            "version": 1,
        }  # fmt: skip
        header = f"<134>1 {java_instant(now)} {client[0]} dCache - firefly-json - "
        datagram = (header + json.dumps(content, separators=(",", ":"))).encode()
        for where in (client[0], "::1"):
            self._fireflies.sendto(datagram, (where, FIREFLIES))


class Download:
    """A GET by a client: at the door, then at the pool."""

    def __init__(self, pool: Pool, host: Namespace, address: str, tag: Tag | None) -> None:
        self._pool, self._host, self._address, self.tag = pool, host, address, tag
        self._at_door = self._connect(DOOR, next(_client_ports))
        self.next_port = next(_client_ports)  # of the connection to the pool
        self._told = pool.accept_at_door()
        self.client: socket.socket | None = None
        self.server: socket.socket | None = None
        self._began = 0.0
        self._sent = 0

    def _connect(self, port: int, own: int) -> socket.socket:
        with self._host.entered():
            one = socket.socket(socket.AF_INET6)
        one.settimeout(SECONDS)
        one.bind((self._address, own))
        one.connect((self._pool.address, port))
        return one

    @property
    def ends(self) -> tuple[str, int]:
        """The client's, of its connection to the door."""
        return self._address, int(self._at_door.getsockname()[1])

    def tell(self) -> None:
        """The pool has a mover for it."""
        self._began = time.monotonic()
        if self.tag is not None:
            self._pool.tell("start", self.ends, self.tag)

    def connect(self) -> None:
        """The client follows the redirect."""
        self.client = self._connect(POOL, self.next_port)
        self.server = self._pool.accept()
        self.ask()

    def ask(self) -> None:
        """The client's request to the pool, over the connection that it has."""
        assert self.client is not None
        assert self.server is not None
        self.client.sendall(b"GET /file HTTP/1.1\r\n\r\n")
        assert self.server.recv(1 << 10)

    @property
    def ports(self) -> tuple[int, int]:
        """Of the data: from the pool to the client."""
        assert self.client is not None
        return POOL, int(self.client.getsockname()[1])

    def send(self, octets: int) -> None:
        """From the pool, in step with the client."""
        assert self.client is not None
        assert self.server is not None
        self._sent += octets
        while octets:
            chunk = min(octets, 1 << 14)
            self.server.sendall(bytes(chunk))
            got = 0
            while got < chunk:
                got += len(self.client.recv(chunk - got))
            octets -= chunk

    def end(self) -> None:
        """The pool tells, and all is closed."""
        self.be_over()
        self.close()

    def be_over(self) -> None:
        """The pool tells, and the client keeps its connections."""
        if self.tag is not None:
            self._pool.tell("end", self.ends, self.tag, sent=self._sent, seconds=time.monotonic() - self._began)
        self._sent = 0

    def close(self) -> None:
        """Tell nobody."""
        for one in (self.server, self.client, self._told, self._at_door):
            if one is not None:
                one.close()
