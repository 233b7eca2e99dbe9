"""In which network namespaces those are who tell the agent of flows through a Unix socket, and their sockets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

import msgspec

from scitags_agent.bpf.connections import namespace_of
from scitags_agent.namespaces import of_process
from scitags_agent.open_namespaces import shared
from scitags_core.flow import FlowEvent

log = logging.getLogger(__name__)


class Senders:
    """Whoever is in one of the namespaces that are looked into tells of its own connections.

    To be used in one event loop alone.
    """

    def __init__(self, namespaces: Sequence[str]) -> None:
        """namespaces are patterns. Raises ConfigError."""
        self._namespaces = shared(namespaces)
        self._namespaces.begin()
        self._is_denied = False

    def close(self) -> None:
        """Ask no more."""
        self._namespaces.end()

    def namespace_of(self, process: int) -> int:
        """That of a sender, by its number; 0 where it is not known, and for one in the agent's own.

        Who is there may speak for others.
        """
        try:
            number = of_process(process)
        except PermissionError:
            if not self._is_denied:
                self._is_denied = True
                log.warning("in which namespace process %d is cannot be seen: CAP_SYS_PTRACE is missing", process)
            return 0
        except OSError:  # it has ended
            return 0
        if number == self._namespaces.own or self._namespaces.by_number(number) is None:
            return 0
        return number

    def placed(self, event: FlowEvent, descriptor: int) -> FlowEvent:
        """The event with the namespace of the transfer's socket, which is exact."""
        one = socket.socket(fileno=descriptor)
        try:
            cookie = namespace_of(one)
        finally:
            one.detach()
        if cookie == self._namespaces.own_cookie:
            number = self._namespaces.own if cookie else 0
        else:
            found = self._namespaces.by_cookie(cookie)
            number = found.number if found is not None else event.key.namespace
        return msgspec.structs.replace(event, key=event.key.within(number))
