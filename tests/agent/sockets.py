"""Real connections on loopback, what the kernel says of them to their owner, and questions to an agent."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

from scitags_core.flow import FlowKey, Transport

TCP_INFO_OCTETS = 1024


class Pair:
    """Both ends of a connection: one that connected, and one that was accepted."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.protocol: Transport = "tcp" if client.type == socket.SOCK_STREAM else "udp"
        # Asked now, as a closed socket has no names.
        self.key = self._key(client)
        self.server_key = self._key(server)

    def _key(self, one: socket.socket) -> FlowKey:
        (near, near_port, *_), (far, far_port, *_) = one.getsockname(), one.getpeername()
        return FlowKey.of(near, near_port, far, far_port, self.protocol)

    def transfer(self, octets: int) -> None:
        """So many octets from the client to the server, who reads them all."""
        left = octets
        while left:
            chunk = min(left, 1 << 14)
            self.client.sendall(bytes(chunk))
            got = 0
            while got < chunk:
                got += len(self.server.recv(chunk - got))
            left -= chunk

    def abort(self) -> None:
        """The client resets the connection."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()
        self.server.close()

    def close(self) -> None:
        self.client.close()
        self.server.close()


@contextlib.contextmanager
def listener(host: str = "::1", port: int = 0, *, dual: bool = False) -> Iterator[socket.socket]:
    """A listening TCP socket."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if dual:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.bind((host, port))
        one.listen(64)
        yield one


def connect(listening: socket.socket, host: str = "", *, source: tuple[str, int] | None = None) -> Pair:
    """A connection to a listener, by the address that it listens on or another of this host."""
    address = listening.getsockname()
    client = socket.create_connection((host or address[0], address[1]), 5, source_address=source)
    server, _ = listening.accept()
    server.settimeout(5)
    return Pair(client, server)


def udp_pair() -> Pair:
    """Two UDP sockets on ::1, connected to each other."""
    one, other = (socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(2))
    one.bind(("::1", 0))
    other.bind(("::1", 0))
    one.connect(other.getsockname())
    other.connect(one.getsockname())
    return Pair(one, other)


def tcp_info_of(one: socket.socket) -> bytes:
    """What getsockopt gives the socket's owner."""
    return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_OCTETS)


def answered_beside(agent: Path, request: bytes) -> bytes:
    """The answer to a request, on a socket that goes along with it; when the agent has closed its end of that."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        with theirs:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [theirs.fileno()]).tobytes())
            sender.sendmsg([request], [rights], 0, os.fspath(agent))
        ours.settimeout(10)
        answer = ours.recv(1 << 18)
        assert ours.recv(1) == b""
    return answer
