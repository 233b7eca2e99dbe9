"""Sockets as they go, told by the kernel's sock_diag."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from scitags_agent.inet_diag import (
    RECEIVE_OCTETS,
    Connection,
    SockDiagError,
    connection_of,
    departed_protocol,
    messages,
    open_netlink,
)

_GROUPS = 0b1111  # SKNLGRP_INET_TCP_DESTROY, _UDP_DESTROY, INET6_TCP_DESTROY, INET6_UDP_DESTROY
_SO_RCVBUFFORCE = 33
_BUFFER_OCTETS = 1 << 25  # a thousand or so for each; the kernel takes them only as they are needed
_AT_ONCE = 256


class Departures:
    """Hears of each TCP and UDP socket of a namespace as it goes, from Linux 4.7 on.

    What is told of one: both ends, cookie, and with TCP the last tcp_info. A TCP socket goes when the connection has
    been closed on both sides and its last octet acknowledged (TIME_WAIT is a socket no more). Of one that its owner
    aborted (SO_LINGER of 0) only the cookie and the local port are left: its remote port is 0. When sockets go faster
    than they are read, some are missed: lost counts how often that happened.
    """

    def __init__(
        self, heard: Callable[[Connection], None], namespace: int = 0, netlink: socket.socket | None = None
    ) -> None:
        """heard is called from read(). netlink is a socket that was opened in another namespace.

        Raises SockDiagError where the kernel does not tell.
        """
        self.lost = 0
        self._heard = heard
        self._namespace = namespace
        self._netlink = open_netlink() if netlink is None else netlink
        try:
            self._netlink.setblocking(False)
            try:
                self._netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_OCTETS)
            except PermissionError:
                self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_OCTETS)
            self._netlink.bind((0, _GROUPS))
        except OSError as error:
            self._netlink.close()
            raise SockDiagError(error.errno, f"the kernel does not tell of sockets that go: {error.strerror}") from None

    def fileno(self) -> int:
        """For an event loop's add_reader(departures, departures.read)."""
        return self._netlink.fileno()

    def read(self) -> int:
        """Take what is there, up to a bound so that others get their turn; how many sockets it told of."""
        for count in range(_AT_ONCE):
            try:
                octets = self._netlink.recv(RECEIVE_OCTETS)
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            for _, message in messages(octets):
                protocol = departed_protocol(message)
                self._heard(connection_of(message, protocol, details=True, namespace=self._namespace))
        return _AT_ONCE

    def close(self) -> None:
        """Hear no more."""
        self._netlink.close()
