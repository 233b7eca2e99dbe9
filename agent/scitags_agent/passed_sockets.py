"""Descriptors of transfers' sockets, which storages pass along: what they tell, and their keeping."""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from typing import Any

import msgspec

from scitags_core.errors import FlowEventError
from scitags_core.flow import FlowEvent, FlowKey, Transport, canonical_address

_TRANSPORTS: dict[int, Transport] = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}


class PassedSockets:
    """One descriptor for a flow, until it ends."""

    def __init__(self, limit: int) -> None:
        """At most limit are kept."""
        self._limit = limit
        self._descriptors: OrderedDict[FlowKey, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._descriptors)

    def get(self, key: FlowKey) -> int | None:
        """The descriptor of a flow's socket."""
        return self._descriptors.get(key)

    def keep(self, key: FlowKey, descriptor: int) -> bool:
        """Take a descriptor over, in place of an earlier one of that flow; False when there is no room."""
        if key not in self._descriptors and len(self._descriptors) >= self._limit:
            return False
        self.let_go(key)
        self._descriptors[key] = descriptor
        return True

    def let_go(self, key: FlowKey) -> None:
        """Close a flow's descriptor, if there is one."""
        descriptor = self._descriptors.pop(key, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Close all."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def identified(event: FlowEvent, descriptor: int) -> FlowEvent:
    """The event with the ports of a socket where it leaves them open (0).

    The descriptor stays the caller's. Raises FlowEventError for what is no connected socket, or another connection's.
    """
    key = event.key
    protocol, local, remote = _ends(descriptor)
    for source, destination in ((local, remote), (remote, local)):
        found = FlowKey(*source, *destination, protocol)
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


def _ends(descriptor: int) -> tuple[Transport, tuple[str, int], tuple[str, int]]:
    try:
        # Not a copy of the descriptor, which would stay open where it is of no socket.
        one = socket.socket(fileno=descriptor)
        try:
            if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type not in _TRANSPORTS:
                raise FlowEventError("the descriptor passed along is of no TCP or UDP socket")
            return _TRANSPORTS[one.type], _end(one.getsockname()), _end(one.getpeername())
        finally:
            one.detach()
    except OSError as error:
        raise FlowEventError(f"the descriptor passed along is of no connected socket: {error.strerror}") from None


def _end(address: tuple[Any, ...]) -> tuple[str, int]:
    return canonical_address(str(address[0])), int(address[1])
