"""This host's TCP and UDP connections, as the kernel's sock_diag knows them.

    dump("tcp")           every connection (IPv4, IPv6, IPv4 on IPv6 sockets)
    Lookup().find(key)    one connection by its 5-tuple; what it costs does not depend on how many there are

All of the network namespace in which the netlink socket was made: this thread's, or that of a Place elsewhere
(scitags_agent.open_namespaces). None of it needs privileges, but sockets in other user namespaces, whose owner is
shown as nobody. scitags_agent.departures tells of those that go.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, closing
from typing import Final, Protocol, Self

from scitags_agent.inet_diag import (
    DONE,
    ERROR,
    FAMILIES,
    RECEIVE_OCTETS,
    Connection,
    ask_for_all,
    ask_for_one,
    cookie_of,
    is_link_local,
    messages,
    open_netlink,
    parse,
    refusal,
)
from scitags_core.flow import FlowKey, Transport

# Looked at in one turn of the event loop, which takes less than a millisecond: a start may come meanwhile.
SOCKETS_AT_ONCE = 16


class Place(Protocol):
    """A network namespace that can be asked."""

    @property
    def number(self) -> int:
        """As in FlowKey; 0 is the agent's own."""

    def borrow(self) -> AbstractContextManager[socket.socket]:
        """A sock_diag socket for one dump. Raises SockDiagError."""

    def interfaces(self, zone: str) -> list[int]:
        """The indexes of those that a zone index can mean; of all where it is empty."""


class Here:
    """The network namespace of the thread that uses this: the agent's own."""

    number = 0

    def borrow(self) -> AbstractContextManager[socket.socket]:
        return closing(open_netlink())

    def interfaces(self, zone: str) -> list[int]:
        if not zone:
            return [index for index, _ in socket.if_nameindex()]
        try:
            return [int(zone) if zone.isdigit() else socket.if_nametoindex(zone)]
        except OSError:
            return []


HERE: Final[Place] = Here()


def dump(
    protocol: Transport, *, local_port: int = 0, remote_port: int = 0, details: bool = False, place: Place = HERE
) -> Iterator[Connection]:
    """Every connected socket of a protocol, TIME_WAIT left out; by ports where given, which the kernel sorts out.

    Not a picture of one instant: a socket that lives on may be missed when others go meanwhile, so that whoever
    concludes that one is gone looks it up. Each step that reads from the kernel takes well under a millisecond, so
    that an event loop can do other things in between. Raises SockDiagError.
    """
    for message in _dump(protocol, local_port, remote_port, place, details=details):
        connection = parse(message, protocol, details=details, namespace=place.number)
        if connection is not None:
            yield connection


def survey(protocol: Transport, known: Container[int], place: Place = HERE) -> Iterator[tuple[int, Connection | None]]:
    """As dump, but for the cookies that are known the cookie alone: this takes half the time."""
    for message in _dump(protocol, 0, 0, place):
        cookie = cookie_of(message)
        if cookie in known:
            yield cookie, None
        else:
            connection = parse(message, protocol, namespace=place.number)
            if connection is not None:
                yield cookie, connection


def _dump(
    protocol: Transport, local_port: int, remote_port: int, place: Place, *, details: bool = False
) -> Iterator[bytes]:
    for family in FAMILIES:
        with place.borrow() as netlink:
            ask_for_all(netlink, family, protocol, (local_port, remote_port), details=details)
            done = False
            while not done:
                for kind, message in messages(netlink.recv(RECEIVE_OCTETS)):
                    if kind == DONE:
                        done = True
                        break
                    if kind == ERROR:
                        raise refusal(message)
                    yield message


class Lookup:
    """Looks up one connection at a time, over a netlink socket of its own."""

    def __init__(self, place: Place = HERE, netlink: socket.socket | None = None) -> None:
        """netlink is one that was opened there. Raises SockDiagError where the kernel has no sock_diag."""
        self._place = place
        self._netlink = open_netlink() if netlink is None else netlink

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self._netlink.fileno() >= 0

    def find(self, key: FlowKey, *, zone: str = "", details: bool = True) -> Connection | None:
        """The connection whose near end is the key's source, in whatever state, or None.

        Which namespace the key names is the caller's affair. zone is the zone index of a link-local address; without
        it, every interface is tried. Not found is a socket that is bound to a device (SO_BINDTODEVICE), but by a dump.
        Raises SockDiagError.
        """
        here = key.within(self._place.number)
        for interface in self._place.interfaces(zone) if is_link_local(key.src) else (0,):
            found = self._find(here, interface, details)
            if found is not None:
                return found
        return None

    def _find(self, key: FlowKey, interface: int, details: bool) -> Connection | None:
        ask_for_one(self._netlink, key, interface, details=details)
        for kind, message in messages(self._netlink.recv(RECEIVE_OCTETS)):
            if kind == ERROR:
                error = refusal(message)
                if error.errno == errno.ENOENT:
                    return None
                raise error
            found = parse(message, key.protocol, details=details, namespace=key.namespace)
            # The kernel falls back to a socket that listens there, or to one that takes what comes from anywhere.
            if found is not None and found.key == key:
                return found
        return None
