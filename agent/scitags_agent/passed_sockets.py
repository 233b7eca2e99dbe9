"""Descriptors of transfers' sockets, which storages pass along: what they tell, and who gets them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections import OrderedDict
from typing import Any

import msgspec

from scitags_core.errors import FlowEventError
from scitags_core.flow import FlowEvent, FlowKey, Transport, canonical_address

KEEP_SECONDS = 0.2
_TRANSPORTS: dict[int, Transport] = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}


class PassedSockets:
    """One descriptor for a flow, for a moment.

    Whoever holds a socket's descriptor keeps its connection open: until ours is closed, the other end does not hear
    that the transfer's program has closed it, or was killed. So each goes to who does something about it, at once, or
    is closed.
    """

    def __init__(self, limit: int) -> None:
        """At most limit are kept."""
        self._limit = limit
        self._descriptors: OrderedDict[FlowKey, int] = OrderedDict()
        _stores.add(self)

    def __len__(self) -> int:
        return len(self._descriptors)

    def keep(self, key: FlowKey, descriptor: int) -> bool:
        """Take a descriptor over, in place of an earlier one of that flow, for KEEP_SECONDS.

        False when nobody waits for any, or there is no room. Called in the event loop.
        """
        if not _takers or (key not in self._descriptors and len(self._descriptors) >= self._limit):
            return False
        self.let_go(key)
        self._descriptors[key] = descriptor
        asyncio.get_running_loop().call_later(KEEP_SECONDS, self._let_go_of, key, descriptor)
        return True

    def take(self, key: FlowKey) -> int | None:
        """The descriptor of a flow's socket, which is the caller's from here on."""
        return self._descriptors.pop(key, None)

    def let_go(self, key: FlowKey) -> None:
        """Close a flow's descriptor, if there is one."""
        descriptor = self._descriptors.pop(key, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Close all."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _let_go_of(self, key: FlowKey, descriptor: int) -> None:
        if self._descriptors.get(key) == descriptor:
            self.let_go(key)


# Storages pass descriptors to sources, and backends act on them; neither knows the other.
_stores: weakref.WeakSet[PassedSockets] = weakref.WeakSet()
_takers: set[object] = set()


def wait_for_sockets(taker: object) -> None:
    """From now on, keep what is passed along until it is taken."""
    _takers.add(taker)


def wait_no_more(taker: object) -> None:
    """The opposite; nothing happens when taker did not wait."""
    _takers.discard(taker)


def take(key: FlowKey) -> int | None:
    """The descriptor that was passed along with a flow, by any source; it is the caller's from here on."""
    # Where it is may have become known since.
    for name in (key, key.within(0)) if key.namespace else (key,):
        for store in tuple(_stores):
            found = store.take(name)
            if found is not None:
                return found
    return None


def identified(event: FlowEvent, descriptor: int) -> FlowEvent:
    """The event with the ports of a socket where it leaves them open (0).

    The other side may have gone before we looked: then the socket does not say any more who that was, and an event that
    leaves nothing open is as good without. The descriptor stays the caller's. Raises FlowEventError for what is no
    connected socket, or another connection's.
    """
    key = event.key
    protocol, local, remote = _ends(descriptor)
    if remote is None:
        if key.src_port and key.dst_port and local in ((key.src, key.src_port), (key.dst, key.dst_port)):
            return event
        raise FlowEventError(f"{key}: the descriptor passed along is of no connected socket")
    for source, destination in ((local, remote), (remote, local)):
        found = FlowKey(*source, *destination, protocol, key.namespace)
        if protocol == key.protocol and _fits(key, found):
            return event if found == key else msgspec.structs.replace(event, key=found)
    raise FlowEventError(f"{key}: the descriptor passed along is of {FlowKey(*local, *remote, protocol)}")


def _fits(key: FlowKey, found: FlowKey) -> bool:
    return (
        key.src == found.src
        and key.dst == found.dst
        and key.src_port in (0, found.src_port)
        and key.dst_port in (0, found.dst_port)
    )


def _ends(descriptor: int) -> tuple[Transport, tuple[str, int], tuple[str, int] | None]:
    """Protocol, local and remote end of a socket; no remote one where it is not, or no longer, connected."""
    try:
        # Not a copy of the descriptor, which would stay open where it is of no socket.
        one = socket.socket(fileno=descriptor)
        try:
            if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type not in _TRANSPORTS:
                raise FlowEventError("the descriptor passed along is of no TCP or UDP socket")
            local, remote = _end(one.getsockname()), None
            with contextlib.suppress(OSError):
                remote = _end(one.getpeername())
            return _TRANSPORTS[one.type], local, remote
        finally:
            one.detach()
    except OSError as error:
        raise FlowEventError(f"the descriptor passed along is of no socket: {error.strerror}") from None


def _end(address: tuple[Any, ...]) -> tuple[str, int]:
    return canonical_address(str(address[0])), int(address[1])
